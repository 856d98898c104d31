"""The pairs of answers that a judge compares, from the scores of a run that are at home."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.untrusted import table, whole

BASE_TUNED, RIGHT_TUNED = "base_tuned", "right_tuned"
TABLES = (BASE_TUNED, RIGHT_TUNED)
"""The two tables: in both the tuned answer is the second one, which wins or loses."""


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """One held-out row with its three answers."""

    row: int
    prompt: str
    base: str
    tuned: str
    right: str

    def answers(self, name: str) -> tuple[str, str]:
        """Return the two answers that a table compares, the tuned one second."""
        return (self.base if name == BASE_TUNED else self.right, self.tuned)


def judged_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[JudgedRow]:
    """Return the rows that both scores have with an answer in words, in the order of `after`.

    They are matched by prompt and right answer.
    """
    first = _documents(before)
    found = []
    for key, document in _documents(after).items():
        if key not in first:
            continue
        found.append(
            JudgedRow(
                row=whole(document.get("row")) or 0,
                prompt=document["prompt"],
                base=first[key]["free"],
                tuned=document["free"],
                right=words_of(document.get("gold")),
            )
        )
    return found


def choose_pairs(rows: Sequence[JudgedRow], most: int) -> list[JudgedRow]:
    """Return at most `most` rows in their order; which ones depends on their words alone."""
    ranked = sorted(range(len(rows)), key=lambda at: (_sha256(rows[at]), at))
    return [rows[at] for at in sorted(ranked[:most])]


def words_of(right: object) -> str:
    """Return a right answer as text: a set of labels as a list with commas."""
    if isinstance(right, list):
        return ", ".join(map(str, right))
    return right if isinstance(right, str) else json.dumps(right, ensure_ascii=False)


def answers_sha256(rows: Sequence[JudgedRow]) -> str:
    """Return the hash of all that a judge could be shown, so that old verdicts can be told."""
    text = json.dumps([[one.prompt, one.base, one.tuned, one.right] for one in rows])
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(row: JudgedRow) -> bytes:
    return hashlib.sha256(json.dumps([row.prompt, row.right]).encode()).digest()


def _documents(score: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Index the rows of a score that have a prompt and an answer; equal rows are counted."""
    listed = table(score.get("details")).get("documents")
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in listed if isinstance(listed, list) else []:
        document = table(one)
        for answer in _answers(document):
            key = json.dumps([answer["prompt"], answer.get("gold")], sort_keys=True)
            found[key, seen[key]] = answer
            seen[key] += 1
    return found


def _answers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers of a row in words: its own, or each of a conversation."""
    listed = document.get("answers")
    each = [document]
    if isinstance(listed, list):
        each = [{**table(one), "row": document.get("row")} for one in listed]
    return [
        one
        for one in each
        if isinstance(one.get("prompt"), str) and isinstance(one.get("free"), str)
    ]
