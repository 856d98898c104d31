"""Says in one sentence why a base cannot be loaded, whatever the libraries raise."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from trainer.device.out_of_memory import is_out_of_memory
from trainer.errors import ConfigError, DoesNotFit
from trainer.hub import hub_is_silent


class readable_failure:  # noqa: N801 - used as a context manager
    """Turns the many errors of a model that cannot be loaded into one that says what to do."""

    def __init__(self, name: str, revision: str | None) -> None:
        self._name = name
        self._revision = revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and is_out_of_memory(error):
            raise DoesNotFit(
                f"{self._name} does not fit into memory; quantise it "
                f"(`kind: qlora`), take a smaller base, or a machine with more memory ({error})"
            ) from error
        if error is not None and hub_is_silent(error):
            raise ConnectionError(f"the hub does not answer: {error}") from error
        if isinstance(error, _UNUSABLE) and not isinstance(error, torch.AcceleratorError):
            where = "directory" if self._revision is None else f"revision {self._revision}"
            raise ConfigError(
                [f"model.id: {self._name} ({where}) cannot be loaded: {error}"]
            ) from error


# What the libraries raise for a base that is not there, damaged, or needs what is not installed.
_UNUSABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
