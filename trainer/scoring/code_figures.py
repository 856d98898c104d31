"""Computes pass@1 over all problems and by library, and what a result keeps of each; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.code_eval.limits import PASSED, Outcome
from trainer.code_eval.problems import Problem
from trainer.data.codec import Example
from trainer.scoring.free_answers import FreeAnswer
from trainer.scoring.interval import Interval
from trainer.scoring.resampling import Floats, resampled_interval
from trainer.scoring.result import EvalResult
from trainer.scoring.shares import paired_change, wilson

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One problem with its answer, and how its own solution and the answer ended."""

    problem: Problem
    item: Example
    answer: FreeAnswer
    code: str
    reference: Outcome
    outcome: Outcome

    @property
    def scorable(self) -> bool:
        """Whether the problem's own solution passes here."""
        return self.reference.verdict == PASSED

    @property
    def passed(self) -> bool:
        """Whether the answer passed."""
        return self.outcome.verdict == PASSED


def pass_share(judged: Sequence[Judged]) -> Interval:
    """Return the share of answers that pass, of the problems that can be scored here."""
    scorable = [one for one in judged if one.scorable]
    return wilson(sum(one.passed for one in scorable), len(scorable))


def code_details(
    judged: Sequence[Judged], empty: Sequence[Outcome], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a result has beside its headline.

    `empty` are the outcomes of the empty answer, none if it was not run. Problems that cannot be
    scored here are in `not_scorable`, each with the reason, and nowhere else.
    """
    scorable = [one for one in judged if one.scorable]
    baselines = {}
    if empty:
        passed = [
            given.verdict == PASSED
            for one, given in zip(judged, empty, strict=True)
            if one.scorable
        ]
        share = wilson(sum(passed), len(passed))
        baselines = {"baselines": {"empty": {"answer": "", "pass_at_1": asdict(share)}}}
    return {
        "problems": len(judged),
        "scorable": len(scorable),
        "not_scorable": [
            {
                "row": one.problem.row,
                "library": one.problem.library,
                "reason": " ".join(
                    part
                    for part in (one.reference.verdict, one.reference.error, one.reference.message)
                    if part
                ),
            }
            for one in judged
            if not one.scorable
        ],
        "libraries": by_library(judged),
        "verdicts": dict(Counter(one.outcome.verdict for one in scorable).most_common()),
        "interpreter": dict(facts),
        **baselines,
        "documents": [_document(one) for one in scorable],
    }


def by_library(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Return for each library how many problems there are, can be scored, and pass."""
    found = {}
    for library in sorted({one.problem.library for one in judged}):
        of_library = [one for one in judged if one.problem.library == library]
        scorable = [one for one in of_library if one.scorable]
        share = asdict(pass_share(scorable)) if scorable else None
        found[library] = {
            "problems": len(of_library),
            "scorable": len(scorable),
            "passed": sum(one.passed for one in scorable),
            "pass_at_1": share,
        }
    return found


def _document(one: Judged) -> dict[str, Any]:
    return {
        "row": one.problem.row,
        "prompt": one.item.prompt,
        "gold": one.item.completion,
        "free": one.answer.text,
        "stopped": one.answer.stopped,
        "score": float(one.passed),
        "verdict": one.outcome.verdict,
        "error": one.outcome.error,
        "message": one.outcome.message,
        "run_seconds": one.outcome.seconds,
        "library": one.problem.library,
        "group": one.problem.group,
    }


def code_gain(before: EvalResult, after: EvalResult) -> dict[str, Any] | None:
    """Return how many more problems pass, paired, with its interval; families stay together.

    Where all families changed alike resampling has no interval; then problems count one by one.
    Only problems that both could score count; None if there are none.
    """
    earlier = {one["row"]: one for one in before.details["documents"]}
    pairs = [
        (earlier[one["row"]], one) for one in after.details["documents"] if one["row"] in earlier
    ]
    if not pairs:
        return None
    groups: dict[str, list[float]] = {}
    for first, second in pairs:
        group = str(second.get("group") or f"row {second['row']}")
        groups.setdefault(group, []).append(second["score"] - first["score"])
    sums = np.array([sum(one) for one in groups.values()], dtype=np.float64)
    counts = np.array([len(one) for one in groups.values()], dtype=np.float64)

    def difference(weights: Floats) -> Floats:
        found: Floats = (weights @ sums) / (weights @ counts)
        return found

    change = resampled_interval(difference, len(groups), resamples=RESAMPLES)
    if change.low == change.high:
        was, now = ([one["score"] == 1 for one in side] for side in zip(*pairs, strict=True))
        change = paired_change(was, now)
    return {"metric": "pass_at_1", "n": len(pairs), **asdict(change)}
