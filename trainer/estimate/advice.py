"""Finds the smallest changes of a config that make a training fit a GPU: pure, by its estimate.

Each change is applied and estimated again before it is returned, so that no advice is a guess. The
estimate is an argument: a formula and a count give advice in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.config import TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.training import estimate_training
from trainer.method_table import MethodKind, OptimizerKind, Quant

LENGTH_STEP = 64
"""Tokens between two lengths that are tried: a length that is no multiple wins nothing."""
LENGTHS_SHORT = (32, 16, 8)
QUERY_VALUE = (
    ("q_proj", "v_proj"), ("q", "v"), ("query", "value"), ("query_key_value",), ("qkv_proj",),
    ("c_attn",), ("Wqkv",),
)  # fmt: skip
"""What the layers of queries and values are called; LoRA was published on these two alone."""

Value = bool | int | float | str | list[str] | None


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What a training needs on a card at its worst moment, and whether that fits."""

    need_bytes: float
    fits: bool


Estimate = Callable[[TrainerConfig], MemoryNeed | None]
"""Estimates a config; None if that is not possible."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """One key of run.yaml with a new value."""

    key: str
    """With its table, such as `train.max_length`; or a whole table."""
    value: Value

    def __str__(self) -> str:
        """Return the line as YAML spells it."""
        if isinstance(self.value, bool):
            return f"{self.key}: {str(self.value).lower()}"
        if self.value is None:
            return f"{self.key}: null"
        if isinstance(self.value, list):
            return f"{self.key}: [{', '.join(self.value)}]"
        return f"{self.key}: {self.value}"


@dataclass(frozen=True, kw_only=True)
class MemoryAdvice:
    """Overrides with which a training fits: none of them can be left out, none be smaller."""

    overrides: tuple[Override, ...]
    need_bytes: float
    keeps_result: bool
    """Whether the adapter is the same but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The values of some keys that need ever less memory, the smallest change first."""

    steps: Sequence[tuple[Override, ...]]
    keeps_result: bool = False


def card_estimate(
    model: Mapping[str, Any] | Shape,
    *,
    gpu: TrainingGpu,
    lengths: Sequence[int] | None = None,
    loss_tokens: int | None = None,
) -> Estimate:
    """Return the estimate of configs on one card by the closed formula.

    `lengths` are the token counts of the rows before they are cut to `train.max_length`.
    """

    def estimate(config: TrainerConfig) -> MemoryNeed:
        most = config.train.max_length
        found = estimate_training(
            config,
            model,
            gpu=gpu,
            lengths=None if lengths is None else [min(most, one) for one in lengths],
            loss_tokens=loss_tokens,
        )
        need = float(found["memory_bytes"]["reserved"])
        return MemoryNeed(need_bytes=need, fits=bool(found["fits"]))

    return estimate


def advise_memory(
    config: TrainerConfig, shape: Shape, estimate: Estimate, *, longest: int | None = None
) -> tuple[MemoryAdvice, ...]:
    """Return what makes a training fit, what changes its result least first; empty if it does.

    Each ladder is tried alone, then together with those that keep the result, then all of them
    one after another. `longest` is the length of the longest row, where that is known. Empty, too,
    if nothing helps: then only a larger card or a smaller base does.
    """
    now = estimate(config)
    if now is None or now.fits:
        return ()
    ladders = [*memory_ladders(config, shape, longest=longest)]
    keeping = [one for one in ladders if one.keeps_result]
    changing = [one for one in ladders if not one.keeps_result]
    groups = [[one] for one in keeping]
    found = _each_that_fits(config, groups, estimate)
    if not found and len(keeping) > 1:
        found = _each_that_fits(config, [keeping], estimate)
    enough = bool(found)
    for one in changing:
        groups = [[one]] if enough or not keeping else [[one], [*keeping, one]]
        found += _each_that_fits(config, groups, estimate)[:1]
    return tuple(found or _each_that_fits(config, [ladders], estimate))


def _each_that_fits(
    config: TrainerConfig, groups: Sequence[Sequence[Ladder]], estimate: Estimate
) -> list[MemoryAdvice]:
    found = [smallest_that_fits(config, group, estimate) for group in groups]
    return [one for one in found if one is not None]


def smallest_that_fits(
    config: TrainerConfig, ladders: Sequence[Ladder], estimate: Estimate
) -> MemoryAdvice | None:
    """Return the least of these ladders with which a config fits; None if all of them do not.

    All are taken to their ends; then each in turn, the one that changes the result most first, is
    taken back as far as the others allow.
    """
    depths = [len(one.steps) for one in ladders]

    def need(at: Sequence[int]) -> MemoryNeed | None:
        changed = with_overrides(config, _overrides(ladders, at))
        return None if changed is None else estimate(changed)

    if (found := need(depths)) is None or not found.fits:
        return None
    for place in reversed(range(len(ladders))):
        low, high = -1, depths[place]  # too little, enough
        while high - low > 1:
            middle = (low + high) // 2
            tried = need([*depths[:place], middle, *depths[place + 1 :]])
            low, high = (low, middle) if tried is not None and tried.fits else (middle, high)
        depths[place] = high
    found = need(depths)
    overrides = _overrides(ladders, depths)
    if found is None or not overrides:
        return None
    used = [one for one, depth in zip(ladders, depths, strict=True) if depth]
    return MemoryAdvice(
        overrides=overrides,
        need_bytes=found.need_bytes,
        keeps_result=all(one.keeps_result for one in used),
    )


def _overrides(ladders: Sequence[Ladder], depths: Sequence[int]) -> tuple[Override, ...]:
    """Return the overrides of ladders climbed down so many steps; 0 leaves one alone."""
    pairs = zip(ladders, depths, strict=True)
    return tuple(one for ladder, depth in pairs if depth for one in ladder.steps[depth - 1])


def with_overrides(config: TrainerConfig, overrides: Sequence[Override]) -> TrainerConfig | None:
    """Return the config with other values for some keys; None if that is no config."""
    tables = config.model_dump(mode="json", exclude_none=True)
    for one in overrides:
        table, _, key = one.key.partition(".")
        tables.setdefault(table, {})[key] = one.value
    try:
        return TrainerConfig.model_validate(tables)
    except ValidationError:  # as `init: pissa` on a base in 4 bits
        return None


def memory_ladders(
    config: TrainerConfig, shape: Shape, *, longest: int | None = None
) -> Iterator[Ladder]:
    """Yield what can save memory in this config, what changes the result least first."""
    train, method = config.train, config.method
    if isinstance(train.micro_batch, int):
        most = min(train.micro_batch, train.batch_size)
        yield _scalar("train.micro_batch", range(most - 1, 0, -1), keeps_result=True)
    if train.gradient_checkpointing is False:
        yield _scalar("train.gradient_checkpointing", [True], keeps_result=True)
    if method.storage.four_bit and not method.double_quant:
        yield _scalar("method.double_quant", [True])
    if method.optimizer is OptimizerKind.ADAMW:
        yield _scalar("method.optimizer", [str(OptimizerKind.ADAMW8BIT)])
    if (packed := _in_four_bits(config)) is not None:
        yield Ladder(steps=[packed])
    length = min(train.max_length, longest or train.max_length)
    multiples = range((length - 1) // LENGTH_STEP * LENGTH_STEP, 0, -LENGTH_STEP)
    short = [one for one in LENGTHS_SHORT if one < length]
    yield _scalar("train.max_length", [*multiples, *short])
    if method.combined is None:
        ranks = [rank for rank in range(method.r - 1, 0, -1) if _rank_valid(config, rank)]
        yield _scalar("method.r", ranks)
    if (names := _query_value(config, shape)) is not None:
        yield _scalar("method.targets", [names])


def _scalar(key: str, values: Sequence[Value], *, keeps_result: bool = False) -> Ladder:
    steps = [(Override(key=key, value=value),) for value in values]
    return Ladder(steps=steps, keeps_result=keeps_result)


def _rank_valid(config: TrainerConfig, rank: int) -> bool:
    return with_overrides(config, [Override(key="method.r", value=rank)]) is not None


def _in_four_bits(config: TrainerConfig) -> tuple[Override, ...] | None:
    """Return how the base comes to lie in 4 bits; None if it does, or the method cannot do that."""
    method = config.method
    if method.storage.four_bit or method.kind is MethodKind.MISS:
        return None
    quant = Override(key="method.quant", value=str(Quant.NF4))
    if method.kind.quantised is False:
        return Override(key="method.kind", value=f"q{method.kind}"), quant
    return (quant,)


def _query_value(config: TrainerConfig, shape: Shape) -> list[str] | None:
    """Return the names of the layers of queries and values; None if no others are adapted."""
    names = {one.name for block in shape.text_blocks for one in block.linears}
    adapted = config.method.target_names or tuple(sorted(names))
    pair = next((pair for pair in QUERY_VALUE if names >= set(pair)), None)
    return None if pair is None or set(adapted) <= set(pair) else list(pair)
