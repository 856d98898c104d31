"""Merges adapters of experts into a base, whose files mostly hold each expert apart.

The loaded model has all experts of a layer in one tensor, and so has the adapter. transformers'
own conversion, reversed, tells which part of it lies in the files under which name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.experts import expert_tensors
from trainer.base_family import choose_family, quiet_bitsandbytes
from trainer.results.base_weights import NoBaseError, stored_name

CACHED = 2
"""Tensors of one layer, whose parts are mixed in the order of a file."""


@dataclass(frozen=True, kw_only=True)
class ExpertLora:
    """The adapter of one tensor of experts: A (rank and expert, columns), B (rows, the same)."""

    a: torch.Tensor
    b: torch.Tensor


class ExpertMerge:
    """Gives every tensor of the files that holds experts its merged value.

    `values` returns the values of a stack of experts, by the name and the value in the loaded
    model, where these are not those of the files; None where they are.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        *,
        adapted: Mapping[str, ExpertLora],
        scaling: Mapping[str, Any],
        values: Callable[[str, torch.Tensor], torch.Tensor] | None,
        read: Callable[[str], torch.Tensor],
    ) -> None:
        self._layout = layout
        self._adapted = adapted
        self._scaling = scaling
        self._values = values
        self._read = read
        self._cache: dict[str, dict[str, torch.Tensor]] = {}
        names = layout.shapes if values is not None else adapted
        self._stack_of = {part: name for name in names for part in layout.parts_of(name)}

    @property
    def names(self) -> Collection[str]:
        """The tensors of the files that become others."""
        return self._stack_of.keys()

    def merged(self, part: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return in float32 what a tensor of the files becomes.

        Raises:
            NoBaseError: it has another shape than the config of the base says.
        """
        name = self._stack_of[part]
        if name not in self._cache:
            while len(self._cache) >= CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[name] = self._compute(name)
        found = self._cache[name][part]
        if found.shape != tensor.shape or not tensor.is_floating_point():
            raise NoBaseError(
                f"{part} is {tensor.dtype} {tuple(tensor.shape)} in the files, and the config of "
                f"the base says {tuple(found.shape)}; merge into the 16-bit base"
            )
        return found if self._values is not None else tensor.float() + found

    def _compute(self, name: str) -> dict[str, torch.Tensor]:
        """Return for each part of a stack its merged value, or only what the adapter adds to it."""
        added = None
        if name in self._adapted:
            layout = self._layout
            added = low_rank(
                layout.shapes[name],
                self._adapted[name],
                transposed=layout.transposed[name],
                scaling=self._scaling,
            )
        if self._values is None:
            assert added is not None
            return self._layout.split(name, added)
        whole = self._values(name, self._layout.join(name, self._read)).float()
        return self._layout.split(name, whole if added is None else whole + added)


class ExpertLayout:
    """Where the experts of a model are: in the loaded one, and in the files of its base."""

    def __init__(self, empty: Any, names: Collection[str]) -> None:
        self._empty = empty
        self._names = names
        self.shapes = expert_tensors(empty)
        self.transposed = {
            name: bool(
                getattr(empty.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
            )
            for name in self.shapes
        }

    def parts_of(self, name: str) -> list[str]:
        """Return the tensors of the files that hold a stack of experts.

        Raises:
            NoBaseError: the files name them in a way that is not understood.
        """
        parts = list(self.split(name, torch.empty(self.shapes[name], device="meta")))
        lost = [part for part in parts if part not in self._names]
        if lost:
            raise NoBaseError(
                f"the files of the base have no {lost[0]} ({len(lost)} in all), which should hold "
                f"{name}"
            )
        return parts

    def split(self, name: str, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut a stack of experts into the parts that lie in the files, by their names there."""
        from transformers.core_model_loading import revert_weight_conversion

        if name in self._names:
            return {name: stack}
        parts = revert_weight_conversion(self._empty, {name: stack})
        return {stored_name(part, self._names): value for part, value in parts.items()}

    def join(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Make a stack of experts of the parts that `read` returns by their names."""
        if name in self._names:
            return read(name)
        size = torch.Size(self.shapes[name]).numel()
        places = self.split(name, torch.arange(size, dtype=torch.int32).view(self.shapes[name]))
        parts = ((place.flatten().long(), read(part).flatten()) for part, place in places.items())
        stack: torch.Tensor | None = None
        for place, values in parts:
            stack = values.new_empty(size) if stack is None else stack
            stack[place] = values
        assert stack is not None
        return stack.view(self.shapes[name])

    def stack_of_layer(self, layer: str, targets: Collection[str]) -> str | None:
        """Return the stack that a layer of PEFT's adapter adapts; None if it is no experts' layer.

        PEFT nests the adapters of several tensors of a module: that of the last one is outermost,
        and `.base_layer` is behind the name for each one further in.
        """
        path = layer
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        inside = (len(layer) - len(path)) // len(".base_layer")
        stacks = [
            name
            for name in self.shapes
            if name.rpartition(".")[0] == path
            and any(name == target or name.endswith(f".{target}") for target in targets)
        ]
        return stacks[-1 - inside] if inside < len(stacks) else None


def empty_model(base: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the model that the config in `base` describes, all shape, no size.

    Raises:
        NoBaseError: it describes none that transformers knows.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            str(base), trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            return choose_family(config).from_config(config)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise NoBaseError(f"{base / 'config.json'} describes no model: {error}") from error


def low_rank(
    shape: tuple[int, ...], lora: ExpertLora, *, transposed: bool, scaling: Mapping[str, Any]
) -> torch.Tensor:
    """Let PEFT compute in float32 what an adapter adds to a stack of experts of this shape.

    Raises:
        NoBaseError: the adapter is of another shape.
    """
    quiet_bitsandbytes()
    from peft import LoraConfig, inject_adapter_in_model

    model: Any = torch.nn.Module()
    model.experts = torch.nn.Module()
    model.experts.stack = torch.nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)
    model.experts.is_transposed = transposed
    inject_adapter_in_model(
        LoraConfig(target_modules=[], target_parameters=["experts.stack"], **scaling), model
    )
    layer: Any = model.experts
    for wanted, given in ((layer.lora_A, lora.a), (layer.lora_B, lora.b)):
        if wanted["default"].weight.shape != given.shape:
            raise NoBaseError(f"an adapter of experts is {tuple(given.shape)}: of another base")
        wanted["default"].weight = torch.nn.Parameter(given.float(), requires_grad=False)
    added: torch.Tensor = layer.get_delta_weight("default")
    return added
