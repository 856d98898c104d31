"""The base class of adapter methods: hooks around a step that do nothing, and PEFT's save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.method_table import MethodTable


class AdapterMethod:
    """A method that PEFT alone trains; others override what they do besides."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        self._model = model
        self._method = method
        self._seed = seed

    def before_step(self, step: int) -> None:
        """Prepare the model for the passes of `step`, by the step's number alone."""

    def after_backward(self) -> None:
        """Bring the gradients of all passes to the trained parameters, before they are clipped."""

    def materialize(self) -> None:
        """Make the model what its parameters say; call before it is used for anything else."""

    def save(self, directory: Path) -> None:
        """Write the adapter to `directory`; raises `OSError`."""
        self._model.save_pretrained(str(directory), save_embedding_layers=False)
