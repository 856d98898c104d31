"""Adds up verdicts: wins, ties, losses, the win rate with its interval, and what to doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from commands.runs.judge.verdicts import Choice, Verdict, is_consistent, verdict_of
from trainer.scoring.shares import wilson

CONSISTENCY_MIN = 0.6
SCORES = {Verdict.WIN: 1.0, Verdict.TIE: 0.5, Verdict.LOSS: 0.0}


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """Two answers to one question with the choices in both orders; None for equal answers."""

    row: int
    first_chars: int
    tuned_chars: int
    choices: tuple[Choice, Choice] | None

    @property
    def verdict(self) -> Verdict:
        """What the tuned answer did."""
        return Verdict.TIE if self.choices is None else verdict_of(*self.choices)


@dataclass(frozen=True, kw_only=True)
class JudgeFigures:
    """One table of a judge: what the tuned answers did against the others.

    A win counts 1 and a tie ½ in `win_rate`. `consistency` is the share of the pairs that were
    asked in which the order made no difference; None if none was asked.
    """

    rows: int
    wins: int
    ties: int
    losses: int
    identical: int
    unreadable: int
    win_rate: float
    low: float
    high: float
    consistency: float | None
    first_chars: float
    tuned_chars: float

    @property
    def warning(self) -> str:
        """What makes the figures doubtful; empty if nothing does."""
        if self.consistency is None or self.consistency >= CONSISTENCY_MIN:
            return ""
        return (
            f"only {self.consistency:.0%} of the verdicts stay when the answers change places: "
            "this judge mostly judges the order"
        )


def add_up(pairs: Sequence[ComparedPair]) -> JudgeFigures | None:
    """Return the figures of a table; None if no pair was judged."""
    if not pairs:
        return None
    verdicts = [one.verdict for one in pairs]
    compared = [one.choices for one in pairs if one.choices is not None]
    documents = len({one.row for one in pairs})
    rate = fmean(SCORES[one] for one in verdicts)
    interval = wilson(rate * documents, documents)  # answers of a conversation are no own trials
    return JudgeFigures(
        rows=len(pairs),
        wins=verdicts.count(Verdict.WIN),
        ties=verdicts.count(Verdict.TIE),
        losses=verdicts.count(Verdict.LOSS),
        identical=len(pairs) - len(compared),
        unreadable=sum(Choice.UNREADABLE in one for one in compared),
        win_rate=rate,
        low=interval.low,
        high=interval.high,
        consistency=fmean(is_consistent(*one) for one in compared) if compared else None,
        first_chars=fmean(one.first_chars for one in pairs),
        tuned_chars=fmean(one.tuned_chars for one in pairs),
    )
