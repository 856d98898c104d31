"""Estimates memory, micro-batch and time of a whole training from its config, for `qft plan`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import Shape, read_shape
from trainer.estimate.cards import (
    even_micro_batch,
    exchanged_bytes,
    rounds,
    shards_base,
    sharing,
)
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.memory import estimate, largest_micro_batch
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.span import Span
from trainer.estimate.step_time import step_seconds
from trainer.estimate.weights import adapter_parameters
from trainer.estimate.with_kernels import with_kernels
from trainer.method_table import MethodKind
from trainer.schedule import Share, make_schedule

GROUPED_PADDING = 1.05


@dataclass(frozen=True, kw_only=True)
class RowTokens:
    """How many tokens the rows of a run have, and how many of them the loss is of."""

    longest: int
    """Decides memory."""
    usual: float
    """The mean, which decides time."""
    longest_target: int | None = None
    """Of the answers; None if every token may be one."""
    usual_target: float | None = None
    sample: tuple[int, ...] = ()
    """Some rows in random order, from which padding is found."""
    shares: tuple[Share, ...] | None = None
    """How many rows there are, by data set; None if that is unknown."""


def estimate_training(  # noqa: PLR0913 - as below
    config: TrainerConfig,
    model: Mapping[str, Any] | Shape,
    *,
    gpu: TrainingGpu,
    lengths: Sequence[int] | None = None,
    loss_tokens: int | None = None,
    cards: int = 1,
    sharded: bool | None = None,
) -> dict[str, Any]:
    """Return memory, micro-batch and time of a run as plain JSON, for `qft plan`.

    `lengths` are the token counts of the rows if they are known, else every row is taken to be
    `max_length` long; `loss_tokens` is the longest answer, else all tokens are taken to be learnt.
    `cards` is how many the machine has, `sharded` whether they share the base, None to decide it.
    """
    longest = config.train.max_length
    rows = RowTokens(
        longest=max(lengths) if lengths else longest,
        usual=sum(lengths) / len(lengths) if lengths else longest,
        longest_target=loss_tokens,
        usual_target=loss_tokens,
        sample=tuple(lengths or ()),
        shares=(Share(rows=len(lengths)),) if lengths is not None else None,
    )
    return estimate_rows(config, model, rows, gpu=gpu, cards=cards, sharded=sharded)


def estimate_rows(  # noqa: PLR0913 - what is trained, where, and by how many cards
    config: TrainerConfig,
    model: Mapping[str, Any] | Shape,
    rows: RowTokens,
    *,
    gpu: TrainingGpu,
    cards: int = 1,
    machines: int = 1,
    sharded: bool | None = None,
) -> dict[str, Any]:
    """Return the same for rows of which only the number and some lengths are known.

    Of several cards, memory is that of each; `sharing` says how they share the work. Over several
    machines, of which each has `cards`, no base is sharded, and the time of what they send each
    other is left out, since nobody says how fast their network is: `sent_bytes` says how much.
    """
    if machines > 1:
        cards, sharded = cards * machines, False
        gpu = replace(gpu, pcie_bytes_per_s=math.inf)
    train, shape = config.train, read_shape(model)
    work = with_kernels(
        setup_of(config, gpu.precision, tokens=rows.longest, loss_tokens=rows.longest_target),
        gpu.kernels,
    )
    if cards > 1:
        if sharded is None:
            sharded = is_sharded(config, shape, gpu=gpu, cards=cards)
        work = replace(work, cards=cards, sharded=sharded)
    fitting = largest_micro_batch(
        shape, work, memory_bytes=gpu.memory_bytes, batch_size=rounds(train.batch_size, cards)
    )
    wanted = fitting if train.micro_batch == "auto" else train.micro_batch
    if cards > 1 and fitting is not None and train.micro_batch == "auto":
        wanted = even_micro_batch(train.batch_size, cards, largest=fitting)
    peak = estimate(shape, replace(work, micro_batch=wanted or 1))
    usual = usual_setup(config, gpu.precision, rows, micro_batch=wanted or 1)
    usual = replace(usual, cards=work.cards, sharded=work.sharded)
    seconds = step_seconds(shape, usual, gpu=gpu, batch_size=train.batch_size)
    steps = steps_of(config, rows.shares)
    hours = None if steps is None else steps * seconds / 3600
    return {
        "gpu": gpu.name,
        "gpu_bytes": gpu.memory_bytes,
        "parameters": shape.parameters,
        "active_parameters": shape.active_in_all,
        "trained_parameters": adapter_parameters(shape, work),
        "tokens": rows.longest,
        "micro_batch": wanted,
        "largest_micro_batch": fitting,
        "fits": fitting is not None and wanted is not None and wanted <= fitting,
        "memory_bytes": asdict(peak),
        "memory_span": peak.need.to_json(),
        "step_seconds": seconds,
        "steps": steps,
        "hours": hours,
        "hours_factor": gpu.factor,
        "hours_span": None if hours is None else hours_span(hours, gpu).to_json(),
        "hours_source": gpu.source,
        **_of_cards(config, shape, usual, gpu, machines=machines),
    }


def _of_cards(
    config: TrainerConfig, shape: Shape, usual: TrainingSetup, gpu: TrainingGpu, *, machines: int
) -> dict[str, Any]:
    """Return how several cards share the work; nothing of one."""
    if usual.cards < 2:
        return {}
    rows = config.train.batch_size
    found = sharing(shape, usual, batch_size=rows, gpu=gpu).to_json()
    if machines == 1:
        return {"sharing": found}
    sent = exchanged_bytes(shape, usual, batch_size=rows)
    return {"sharing": {**found, "machines": machines, "exchange_s": None, "sent_bytes": sent}}


def is_sharded(config: TrainerConfig, shape: Shape, *, gpu: TrainingGpu, cards: int) -> bool:
    """Decide whether the base is sharded over the cards of a machine, for plan and trainer."""
    return shards_base(
        shape,
        setup_of(config, gpu.precision),
        memory_bytes=gpu.memory_bytes,
        cards=cards,
        method=config.method,
    )


def usual_setup(
    config: TrainerConfig, precision: PrecisionChoice, rows: RowTokens, *, micro_batch: int
) -> TrainingSetup:
    """Return the setup of a usual micro-batch, its rows padded to the longest of them."""
    at_once = min(micro_batch, config.train.batch_size)
    padded = rows.usual * padding_factor(rows.sample, at_once, grouped=config.train.group_by_length)
    target = None if rows.usual_target is None else max(1, round(rows.usual_target))
    setup = setup_of(config, precision, tokens=max(1, round(padded)), loss_tokens=target)
    return replace(setup, micro_batch=at_once)


def setup_of(
    config: TrainerConfig,
    precision: PrecisionChoice,
    *,
    tokens: int | None = None,
    loss_tokens: int | None = None,
) -> TrainingSetup:
    """Return the setup of a run on a card whose own arithmetic is `precision`.

    `tokens` is the length of its rows, the longest allowed if not given; `loss_tokens` that of
    their answers, which counts where the loss is of answers only.
    """
    train, method = config.train, config.method
    return TrainingSetup(
        tokens=tokens or train.max_length,
        batch_size=train.batch_size,
        quant=method.storage,
        double_quant=method.double_quant,
        r=method.r,
        targets=method.target_names,
        dropout=method.dropout > 0,
        optimizer=method.optimizer,
        precision=precision if train.precision is PrecisionChoice.AUTO else train.precision,
        checkpointing=train.gradient_checkpointing is not False,
        loss_tokens=loss_tokens if config.data.loss_on == "completion" else None,
        dora=method.kind.dora,
        bases=method.combined,
        miss=method.kind is MethodKind.MISS,
        new_tokens=bool(config.model.new_tokens),
        saved=method.saved_matrices,
    )


def hours_span(hours: float, gpu: TrainingGpu) -> Span:
    """Return the hours of a training with the range in which nine tenths of published ones lie."""
    return Span.within_factor(hours, gpu.factor)


def padding_factor(lengths: Sequence[int], at_once: int, *, grouped: bool) -> float:
    """Return how much longer rows become by padding to the longest of the `at_once` beside them.

    Rows in the order of a file stand for rows in random order; grouped ones are nearly as long as
    their neighbours (docs/benchmarks.md has no figure of it: a twentieth is assumed).
    """
    if at_once < 2 or len(lengths) < 2:
        return 1.0
    if grouped:
        return GROUPED_PADDING
    batches = [lengths[at : at + at_once] for at in range(0, len(lengths), at_once)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(lengths)


def steps_of(config: TrainerConfig, shares: Sequence[Share] | None) -> int | None:
    """Return the optimizer steps of a run; None if its rows are not known and decide them."""
    if config.train.steps is not None:
        return config.train.steps
    if shares is None:
        return None
    return make_schedule(config.train, (), shares).steps
