"""Gives advice on a plan the means to estimate and price a changed config, as the plan itself was.

Rows are read once: a change of their longest length is computed from the sample of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.planning.advice import advise, memory_advice
from commands.runs.planning.estimates import HERE, find_gpu, rows_of, tables_here
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.job_inputs import JobInputs, job_inputs
from commands.runs.planning.priced_change import Advice, Pricing
from commands.runs.planning.pricing import priced_offer, rehearsed_offer
from commands.runs.planning.ranking import JobOffer
from commands.runs.planning.row_lengths import RowLengths
from infra.offer import Offer
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.estimate.advice import Estimate, MemoryNeed
from trainer.estimate.common_bases import COMMON_BASES, find_common_base
from trainer.estimate.training import estimate_rows, setup_of
from trainer.estimate.weights import adapter_parameters


def advice_on(
    loaded: LoadedConfig,
    offers: Sequence[JobOffer],
    cards: Sequence[JobOffer],
    inputs: JobInputs | None,
) -> tuple[Advice, ...]:
    """Return what would make a planned run go ahead; empty if it does, or nothing helps.

    `offers`, `cards` and `inputs` are those of the plan; without inputs no card is known.
    """
    if inputs is None or inputs.shape is None:
        return ()
    return advise(loaded, offers, cards, pricing=_pricing(loaded, inputs))


def advice_on_rehearsal(
    loaded: LoadedConfig, rehearsed: Sequence[JobOffer], inputs: JobInputs | None
) -> tuple[Advice, ...]:
    """Return the same where this computer trains: its memory is free now, its hours are paid for.

    `rehearsed` are the simulated offers with the hours of this computer.
    """
    first = next((one.job for one in rehearsed if one.job is not None), None)
    if inputs is None or inputs.shape is None or first is None:
        return ()
    pricing = _pricing(loaded, inputs, here=True)
    if first.fits is False:
        return tuple(memory_advice(tables_here(inputs.tables), first, pricing))
    return advise(loaded, rehearsed, (), pricing=pricing)


def _pricing(loaded: LoadedConfig, inputs: JobInputs, *, here: bool = False) -> Pricing:
    """Return how a changed config is priced: on the offered card, or on this computer."""

    def price(changed: LoadedConfig, offer: Offer) -> JobOffer:
        same_base = changed.config.model == loaded.config.model
        given = inputs_with(inputs, _tables(changed)) if same_base else job_inputs(changed)
        given = replace(given, may_count=False)
        if here:
            return rehearsed_offer(changed, offer, inputs=given)
        return priced_offer(changed, offer, inputs=given)

    return Pricing(
        price=price,
        need=lambda job: memory_estimate(loaded, job, inputs),
        shape=inputs.shape,
        longer_share=None if inputs.lengths is None else _longer_share(inputs.lengths),
        other_bases=smaller_bases(loaded.config.model.id),
    )


def memory_estimate(loaded: LoadedConfig, job: JobEstimate, inputs: JobInputs) -> Estimate | None:
    """Return how the memory of changed settings is estimated for the card of a job.

    By the formula: to count takes seconds each. Where the job's memory was counted, the formula is
    scaled to that; what is advised fits with the high end of its range.
    """
    gpu, shape = find_gpu(loaded, job.card), inputs.shape
    if gpu is None or shape is None or job.memory_bytes is None:
        return None

    def found_for(tables: TrainerConfig) -> dict[str, Any]:
        rows = rows_of(tables, inputs_with(inputs, tables).lengths)
        machines = int(job.sharing.get("machines", 1)) if job.sharing else 1
        cards = job.cards // machines
        return estimate_rows(tables, shape, rows, gpu=gpu, cards=cards, machines=machines)

    processes = loaded.config.vm.gpus * loaded.config.vm.nodes
    now = found_for(tables_here(inputs.tables, processes) if job.card == HERE else inputs.tables)
    factor = job.memory_bytes.likely / now["memory_bytes"]["reserved"]

    def estimate(tables: TrainerConfig) -> MemoryNeed:
        if tables.train.micro_batch == "auto":  # it fits if one row does
            train = tables.train.model_copy(update={"micro_batch": 1})
            tables = tables.model_copy(update={"train": train})
        found = found_for(tables)
        return MemoryNeed(
            need_bytes=found["memory_bytes"]["reserved"] * factor,
            fits=found["memory_span"]["high"] * factor <= gpu.memory_bytes,
        )

    return estimate


def inputs_with(inputs: JobInputs, tables: TrainerConfig) -> JobInputs:
    """Return the inputs of a job with other settings, of the same base and the same rows."""
    adapter = inputs.adapter_bytes
    if inputs.shape is not None:
        trained = adapter_parameters(inputs.shape, setup_of(tables, PrecisionChoice.BF16))
        adapter = 4.0 * trained
    lengths = inputs.lengths
    if lengths is not None and tables.train.max_length < inputs.tables.train.max_length:
        lengths = _cut(lengths, tables.train.max_length)
    return replace(inputs, tables=tables, lengths=lengths, adapter_bytes=adapter)


def _cut(lengths: RowLengths, most: int) -> RowLengths:
    """Return rows of which none is longer than `most` tokens; longer ones are cut."""
    tokens = tuple(min(most, one) for one in lengths.tokens)
    mean = sum(tokens) / len(tokens) if tokens else min(lengths.mean_tokens, float(most))
    return replace(
        lengths,
        tokens=tokens,
        mean_tokens=mean,
        longest_tokens=min(lengths.longest_tokens, most),
        target_tokens=min(lengths.target_tokens, mean),
        longest_target=min(lengths.longest_target, most),
    )


def _longer_share(lengths: RowLengths) -> Callable[[int], float] | None:
    """Return how to tell the share of rows above a length; None if no row was looked at."""
    if not lengths.tokens:
        return None
    return lambda most: sum(one > most for one in lengths.tokens) / len(lengths.tokens)


def smaller_bases(model: str) -> tuple[str, ...]:
    """Return the smaller common bases of the same owner and architecture, the largest first."""
    base = find_common_base(model)
    if base is None:
        return ()
    family = (base.id.partition("/")[0], base.config.get("model_type"))
    smaller = [
        one
        for one in COMMON_BASES
        if (one.id.partition("/")[0], one.config.get("model_type")) == family
        and one.billions < base.billions
        and (base.gated or not one.gated)
    ]
    return tuple(one.id for one in sorted(smaller, key=lambda one: -one.billions))


def _tables(loaded: LoadedConfig) -> TrainerConfig:
    return TrainerConfig.model_validate(loaded.config.trainer_tables)
