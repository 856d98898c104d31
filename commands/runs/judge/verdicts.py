"""Reads what a judge wrote, and decides what two answers in both orders amount to."""

from __future__ import annotations

import re
from enum import StrEnum

WORD = re.compile(r"\b(A|B|TIE|Tie|tie)\b")
EDGES = "*_`\"'.!:()[]{}<> \t"


class Choice(StrEnum):
    """What a judge chose in one order: the answer called A, the one called B, or neither."""

    A = "A"
    B = "B"
    TIE = "TIE"
    UNREADABLE = "unreadable"


class Verdict(StrEnum):
    """What the tuned answer did in one row, both orders together."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


def read_choice(text: str) -> Choice:
    """Return the choice in the last line: the line itself, or the last such word in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(EDGES)]
    if not lines:
        return Choice.UNREADABLE
    found = WORD.findall(lines[-1])
    alone = lines[-1].strip(EDGES).upper()
    if alone in {Choice.A, Choice.B, Choice.TIE}:
        return Choice(alone)
    return Choice(found[-1].upper()) if found else Choice.UNREADABLE


def verdict_of(tuned_second: Choice, tuned_first: Choice) -> Verdict:
    """Return the verdict on the tuned answer, which was B in one order and A in the other.

    It counts only if both orders chose the same answer; anything else is a tie.
    """
    if tuned_second == Choice.B and tuned_first == Choice.A:
        return Verdict.WIN
    if tuned_second == Choice.A and tuned_first == Choice.B:
        return Verdict.LOSS
    return Verdict.TIE


def is_consistent(tuned_second: Choice, tuned_first: Choice) -> bool:
    """Return whether the order of the answers made no difference."""
    if Choice.UNREADABLE in {tuned_second, tuned_first}:
        return False
    same_tie = tuned_second == tuned_first == Choice.TIE
    return same_tie or verdict_of(tuned_second, tuned_first) is not Verdict.TIE
