"""Counts a deep model by two shallow ones: layers are alike, so every sum grows evenly with them.

A stack is a list of layers that repeat with some period, perhaps after a few of another kind. Two
models with two and three periods are counted, apart for each moment: what comes before and after
the layers, and the first and the last period of each stack, forward and backward. What lies between
first and last is between them in size, too. Each moment is then extended to the full depth in a
straight line, and the highest is the peak; that this is the peak of the whole model is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.adapters.quantise import text_prefix
from trainer.step_memory.storages import StorageTracker

PERIOD_MAX = 6
BEFORE_MAX = 4


@dataclass(frozen=True)
class Depth:
    """How deep the stacks of a model are, all alike, and how they repeat."""

    layers: int
    before: int
    """Layers of another kind at the beginning."""
    period: int

    @property
    def shallow(self) -> tuple[int, int]:
        """The depths that are counted."""
        return self.before + 2 * self.period, self.before + 3 * self.period

    def extend(self, low: float, high: float) -> int:
        """Return what a sum is at full depth, given what it is at the two shallow ones."""
        return round(high + (high - low) * (self.layers - self.shallow[1]) / self.period)


def find_depth(model: Any) -> Depth | None:
    """Return how the layers of an empty model repeat; None if they do not, or are few."""
    if text_prefix(model):
        return None
    stacks = find_stacks(model)
    if not stacks or len({len(stack) for stack in stacks}) > 1:
        return None
    kinds = [
        tuple(_kind(stack, at, model.config) for stack in stacks) for at in range(len(stacks[0]))
    ]
    for period in range(1, PERIOD_MAX + 1):
        for before in range(BEFORE_MAX + 1):
            rest = kinds[before:]
            repeats = all(one == rest[at % period] for at, one in enumerate(rest))
            if repeats and len(rest) % period == 0 and len(rest) > 3 * period:
                return Depth(len(kinds), before, period)
    return None


def find_stacks(model: Any) -> list[Any]:
    """Return the lists of layers in a model, in the order in which they are passed."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1
    ]
    return [
        module
        for name, module in found
        if not any(name.startswith(f"{other}.") for other, _ in found)
    ]


def _kind(stack: Any, at: int, config: Any) -> tuple[object, ...]:
    """Return what sets a layer apart from others."""
    types = getattr(config, "layer_types", None)
    kind = types[at] if isinstance(types, list | tuple) and at < len(types) else None
    layer = stack[at]
    shapes = [(name, type(one), tuple(one.shape)) for name, one in layer.named_parameters()]
    return type(layer), kind, tuple(shapes)


def truncate(model: Any, layers: int) -> None:
    """Take away all layers of an empty model after the first ones."""
    for stack in find_stacks(model):
        del stack[layers:]


def mark_layers(model: Any, tracker: StorageTracker) -> None:
    """Let the phases of a pass say which layer of which stack is passed, and in which direction."""

    def mark(layer: Any, name: str) -> None:
        def begin(_: Any, __: Any) -> None:
            if not tracker.phase.startswith("backward"):
                tracker.phase = f"forward {name}"

        def end(_: Any, __: Any, result: Any) -> None:
            hidden = result[0] if isinstance(result, tuple) else result
            if hidden.requires_grad:
                hidden.register_hook(turn)

        def turn(_: torch.Tensor) -> None:
            tracker.phase = f"backward {name}"

        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(end)

    for number, stack in enumerate(find_stacks(model)):
        for at, layer in enumerate(stack):
            mark(layer, f"{number} {at}")


def by_moment(peaks: Mapping[str, int], depth: Depth, layers: int) -> dict[str, int]:
    """Return the peaks of the moments of a pass through so many layers."""
    found: dict[str, int] = {}
    for phase, peak in peaks.items():
        direction, _, place = phase.partition(" ")
        stack, _, at = place.partition(" ")
        ends = [""] if not place else []
        if place and int(at) < depth.before + depth.period:
            ends.append(f" {stack} first")
        if place and int(at) >= layers - depth.period:
            ends.append(f" {stack} last")
        for end in ends:
            key = f"{direction}{end}"
            found[key] = max(found.get(key, 0), peak)
    return found


def deep_peak(shallow: Sequence[Mapping[str, int]], depth: Depth) -> tuple[int, str]:
    """Return the peak at full depth and its part, given those of the moments at two depths."""
    low, high = (
        by_moment(peaks, depth, layers)
        for peaks, layers in zip(shallow, depth.shallow, strict=True)
    )
    return max(
        (depth.extend(low.get(moment, peak), peak), moment.partition(" ")[0])
        for moment, peak in high.items()
    )
