"""Takes the memory of a step from a count, where torch is here; else from the closed formula.

The command line never loads torch: a program of the trainer counts, in a process of its own and for
a limited time, and what it found is remembered by the digest of the request.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from commands.runs.extras import missing
from commands.runs.home import environment, qft_home
from commands.runs.python_program import argv_of, environment_of
from infra.durable import read_json, write_json
from trainer.config import TrainerConfig
from trainer.estimate.loops import OURS
from trainer.estimate.training import RowTokens
from trainer.untrusted import whole

COUNTS = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
LIMIT_S = 10.0
"""So that a plan is there within 15 seconds; on two idle cores a count takes three to eight."""
LIMIT_NAME = "QFT_COUNT_S"
"""The variable that sets another limit; 0 counts nothing."""
AGREES = 0.05
"""Up to this difference, nothing is said of the formula beside the count."""
FORMAT = 1
"""Of what is remembered; another one is counted again."""
BYTES_MAX = 1 << 53
LATE = "late_s"
"""The key of an answer that did not come within so many seconds."""


@dataclass(frozen=True, kw_only=True)
class CountedStep:
    """The bytes of a step of so many rows a pass, counted: what stays, and the peak."""

    base: int
    adapter: int
    optimizer: int
    peak: int

    @property
    def reserved(self) -> float:
        """The need on a card: with the slack of torch's allocator and the context."""
        static = self.base + 2 * self.adapter + self.optimizer  # gradients are as large
        passing = max(0, self.peak - static)
        return static * OURS.static_slack + passing * OURS.slack + OURS.context_bytes


def with_count(  # noqa: PLR0913 - what decides a step, and who counts it
    found: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None,
    tables: TrainerConfig,
    rows: RowTokens,
    capability: tuple[int, int],
    count: Callable[[dict[str, Any], int], CountedStep | None] | None = None,
) -> dict[str, Any]:
    """Return an estimate (`estimate_rows`) with the memory that was counted, if it can be.

    `config` is the base's `config.json`. The formula proposes how many rows go at once; if what is
    counted of so many does not fit, or of `auto` fewer would, the number is found anew by the two.
    Added are `memory_counted` and, if the two differ by more than a twentieth,
    `memory_disagreement`, a sentence.
    """
    count = count or counted
    plain = {**found, "memory_counted": False, "memory_disagreement": ""}
    size = found["micro_batch"] or 1
    if config is None or tables.method.parent is not None:
        return plain
    request = step_request(config, tables, rows, capability=capability)
    step = count(request, size)
    if step is None:
        return plain
    formula = found["memory_bytes"]
    room = found["gpu_bytes"] * formula["reserved"] / found["memory_span"]["high"]
    fits = step.reserved <= room  # also at the upper end of the range, as the formula decides
    fitting = found["largest_micro_batch"]
    if tables.train.micro_batch == "auto" and not fits and size > 1:
        one = count(request, 1)
        if one is None:
            return plain
        fitting = _fitting(one, step, size, room)
        again = count(request, fitting or 1)
        if again is not None:
            size, step = fitting or 1, again
        fits = fitting is not None and step.reserved <= room
    return {
        **plain,
        "micro_batch": size if fits or tables.train.micro_batch != "auto" else None,
        "largest_micro_batch": max(size, fitting or 0) if fits else None,
        "fits": fits,
        "memory_bytes": _memory(formula, step),
        "memory_span": _span(found, step.reserved),
        "memory_counted": True,
        "memory_disagreement": _disagreement(found, size, step),
    }


def _fitting(one: CountedStep, many: CountedStep, size: int, memory_bytes: float) -> int | None:
    """Return how many rows fit, between one and `size`, of which both were counted."""
    each = (many.reserved - one.reserved) / (size - 1)
    if one.reserved > memory_bytes:
        return None
    return max(1, min(size - 1, 1 + int((memory_bytes - one.reserved) / max(each, 1.0))))


def _memory(formula: Mapping[str, float], step: CountedStep) -> dict[str, float]:
    """Return the counted bytes under the keys of the formula's."""
    static = step.base + 2 * step.adapter + step.optimizer
    return {
        **formula,
        "base": float(step.base),
        "adapter": 2.0 * step.adapter,
        "optimizer": float(step.optimizer),
        "activations": float(max(0, step.peak - static)),
        "logits": 0.0,
        "workspace": 0.0,
        "allocated": float(step.peak),
        "reserved": step.reserved,
    }


def _span(found: Mapping[str, Any], need: float) -> dict[str, float]:
    """Return the range of the need, as wide as the formula's: the allocator is not counted."""
    factor = need / found["memory_bytes"]["reserved"]
    return {name: value * factor for name, value in found["memory_span"].items()}


def _disagreement(found: Mapping[str, Any], size: int, step: CountedStep) -> str:
    formula = found["memory_bytes"]["allocated"]
    if size != (found["micro_batch"] or 1) or abs(formula / step.peak - 1) <= AGREES:
        return ""
    return (
        f"memory: {step.peak / 1e9:.1f} GB were counted on the model itself, "
        f"the formula says {formula / 1e9:.1f} GB; the count is taken"
    )


def step_request(
    config: Mapping[str, Any],
    tables: TrainerConfig,
    rows: RowTokens,
    *,
    capability: tuple[int, int],
) -> dict[str, Any]:
    """Return what `python -m trainer step-memory` is asked, without the rows of a pass."""
    answers_only = tables.data.loss_on == "completion"
    return {
        "config": dict(config),
        "method": tables.method.model_dump(mode="json", exclude_unset=True),
        "train": tables.train.model_dump(mode="json", exclude_unset=True),
        "new_tokens": len(tables.model.new_tokens),
        "capability": list(capability),
        "tokens": rows.longest,
        "loss_tokens": rows.longest_target if answers_only else None,
    }


def counted(request: dict[str, Any], micro_batch: int) -> CountedStep | None:
    """Return what a step takes; None if it cannot be counted here, or not in time."""
    limit_s = _limit_s()
    if limit_s <= 0 or missing(COUNTS):
        return None
    text = json.dumps({**request, "micro_batches": [micro_batch]}, sort_keys=True)
    return _remembered(text, qft_home(environment()) / "cache" / "steps", limit_s)


def _limit_s() -> float:
    try:
        return float(environment().get(LIMIT_NAME, LIMIT_S))
    except ValueError:
        return LIMIT_S


@cache
def _remembered(request: str, folder: Path, limit_s: float) -> CountedStep | None:
    """Return what was counted, now or on another day; what took too long is not tried again."""
    versions = " ".join(f"{name} {metadata.version(name)}" for name in COUNTS)
    mark = hashlib.sha256(f"{FORMAT} {versions} {request}".encode()).hexdigest()
    memory = folder / f"{mark}.json"
    try:
        answer = read_json(memory)
    except (OSError, ValueError):  # not there, or torn
        answer = None
    if not isinstance(answer, dict) or answer.get(LATE, limit_s) < limit_s:
        answer = _count(request, limit_s)
        _remember(memory, answer)
    try:
        return read_step(answer)
    except (ValueError, TypeError, KeyError, IndexError):
        return None  # it could not be counted, or not in time


def _remember(memory: Path, answer: dict[str, Any]) -> None:
    with suppress(OSError):  # no room: it is counted again the next time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, answer)


def read_step(answer: Any) -> CountedStep:
    """Return the checked answer; raises `ValueError`, `TypeError`, `KeyError` or `IndexError`."""
    sizes = [
        *(answer[name] for name in ("base", "adapter", "optimizer")),
        answer["passes"][0]["peak"],
    ]
    found = [whole(size, most=BYTES_MAX) for size in sizes]
    if any(size is None for size in found):
        raise ValueError("a size in the answer is none")
    base, adapter, optimizer, peak = (size or 0 for size in found)
    return CountedStep(base=base, adapter=adapter, optimizer=optimizer, peak=peak)


def _count(request: str, limit_s: float) -> dict[str, Any]:
    """Let the trainer count, and return what it printed, or why there is nothing."""
    with tempfile.TemporaryDirectory(prefix="qft-step-") as scratch:
        path = Path(scratch) / "request.json"
        path.write_text(request, encoding="utf-8")
        try:
            done = subprocess.run(
                argv_of("trainer", "step-memory", "--request", str(path)),
                env=environment_of(environment()),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return {LATE: limit_s}
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"refused": done.stderr.strip()[-500:]}
