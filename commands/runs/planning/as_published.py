"""Words whether a run would fit in the loop of the published articles, and what of ours differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.find_config import find_config
from commands.runs.home import environment, qft_home
from commands.runs.parent_adapter import resolve_parent
from commands.runs.planning.estimates import find_gpu, rows_of
from commands.runs.planning.figures import GB
from commands.runs.planning.job_inputs import JobInputs, job_inputs
from commands.ui.errors import UsageError
from infra.catalog.gpus import UnknownGpu, resolve_gpu
from trainer.estimate.as_published import SMALL_RANK, AsPublished, as_published
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.span import Span
from trainer.estimate.training import setup_of

NOT_SEEN = 0.05 * GB
"""A saving that would round to 0.0 GB is none."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run in both loops on one card."""

    found: AsPublished
    card: TrainingGpu
    r: int

    def lines(self) -> list[str]:
        """Return the lines to print."""
        return as_published_lines(self.found, self.card, r=self.r)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return comparison_json(self.found, self.card)


def make_comparison(wanted: str) -> Comparison:
    """Compare the run of a run.yaml; asks neither a cloud nor a hub, creates nothing.

    Raises a class of `commands.ui.errors`.
    """
    home = qft_home(environment())
    loaded, _ = resolve_parent(find_config(wanted, home), home)
    found, card = compare_loops(loaded)
    return Comparison(found=found, card=card, r=loaded.config.method.r)


def compare_loops(loaded: LoadedConfig) -> tuple[AsPublished, TrainingGpu]:
    """Return the needs of a run in the published loop and in ours, and the card it is meant for.

    Raises:
        UsageError: run.yaml names no card that is known, or the base's sizes are unknown.
    """
    name = loaded.config.vm.card
    card = find_gpu(loaded, name) if name else None
    if card is None:
        raise UsageError(
            "the published loop is compared on one card, and run.yaml names none that is known",
            hint="set `vm.gpu`, such as `gpu: T4`",
        )
    inputs = job_inputs(loaded)
    if inputs.shape is None:
        raise UsageError(f"memory cannot be estimated: {inputs.problem}")
    rows = rows_of(inputs.tables, inputs.lengths)
    work = setup_of(
        inputs.tables, card.precision, tokens=rows.longest, loss_tokens=_answer_tokens(inputs)
    )
    return as_published(inputs.shape, work, card_bytes=card.memory_bytes), card


def _answer_tokens(inputs: JobInputs) -> int | None:
    """Return the longest answer, None if the rows are not here."""
    return None if inputs.lengths is None else max(1, inputs.lengths.longest_target)


def as_published_lines(found: AsPublished, card: TrainingGpu, *, r: int) -> list[str]:
    """Return what the published loop needs, why, and what in our trainer makes the training fit."""
    fits, ours = (found.fits(one, card.memory_bytes) for one in (found.published, found.ours))
    need, memory = found.published.need, _gb(card.memory_bytes)
    lines = [
        f"as published: {_marketed_gb(card)} GB {card.name}: {'fits' if fits else 'does not fit'}",
        f"  a row of {found.tokens:,} tokens at rank {r} needs {_range(need)} of {memory}:",
        "  no checkpointing, all scores of attention, logits of all tokens and",
        "  embeddings in float32",
    ]
    if not fits:
        lines.append(f"  {_rank_and_length(found, r=r)}")
    answer = f"{'fits' if ours else 'does not fit'}: {_range(found.ours.need)}"
    savings = [one for one in found.savings if one.bytes >= NOT_SEEN]
    return [
        *lines,
        f"by this trainer: {answer}",
        "each of these alone lowers the published need:",
        *(f"  {one.name:<28} -{_gb(one.bytes)} GB" for one in savings),
        "both are computed, not measured on this card (docs/memory-points.md)",
    ]


def _range(need: Span) -> str:
    return f"{_gb(need.likely)} GB ({_gb(need.low)} to {_gb(need.high)})"


def _rank_and_length(found: AsPublished, *, r: int) -> str:
    """Say in one line how little the rank does, and which length would fit."""
    parts = []
    if r > SMALL_RANK:
        parts.append(f"rank {SMALL_RANK} would need {_gb(found.small_rank.reserved)} GB")
    parts.append(
        "no length would fit"
        if found.longest is None
        else f"rows of up to about {_rounded(found.longest):,} tokens would fit"
    )
    return "; ".join(parts)


def _rounded(tokens: int) -> int:
    """Return a length rounded down to a number that does not look exact."""
    return tokens if tokens < 100 else tokens // 50 * 50


def _marketed_gb(card: TrainingGpu) -> str:
    """Return the memory that a card is sold with, which the driver does not leave whole."""
    try:
        return f"{resolve_gpu(card.name).gpu.memory_gb:g}"
    except UnknownGpu:
        return _gb(card.memory_bytes)


def _gb(size: float) -> str:
    return f"{size / GB:.1f}"


def comparison_json(found: AsPublished, card: TrainingGpu) -> dict[str, Any]:
    """Return the figures as plain values, bytes as numbers."""
    return {
        "card": card.name,
        "card_bytes": card.memory_bytes,
        "tokens": found.tokens,
        "published": {
            "need_bytes": found.published.need.to_json(),
            "fits": found.fits(found.published, card.memory_bytes),
            "longest_tokens": found.longest,
        },
        "ours": {
            "need_bytes": found.ours.need.to_json(),
            "fits": found.fits(found.ours, card.memory_bytes),
        },
        "savings": [{"name": one.name, "bytes": one.bytes} for one in found.savings],
    }
