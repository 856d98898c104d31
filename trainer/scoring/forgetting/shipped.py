"""Reads the questions and openings that are shipped: our own words, public domain (CC0)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LETTERS = "ABCD"
QUESTIONS = Path(__file__).with_name("questions.jsonl")
OPENINGS = Path(__file__).with_name("openings.jsonl")


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """A question with four options, of which one is right."""

    topic: str
    text: str
    options: tuple[str, ...]
    right: int
    """The place of the right option."""

    @property
    def prompt(self) -> str:
        """What a model reads: the question, the options under letters, and a word for the answer.

        What follows is a space and a letter.
        """
        listed = (f"{letter}. {one}" for letter, one in zip(LETTERS, self.options, strict=True))
        return "\n".join((f"Question: {self.text}", *listed, "Answer:"))


@cache
def questions() -> tuple[MultipleChoice, ...]:
    """Return the sixty questions; the right answers are spread evenly over the letters."""
    return tuple(
        MultipleChoice(
            topic=one["topic"],
            text=one["question"],
            options=tuple(one["options"]),
            right=LETTERS.index(one["right"]),
        )
        for one in map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines())
    )


@cache
def openings() -> tuple[str, ...]:
    """Return the beginnings of sixty-four texts, in a few languages."""
    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    return tuple(str(json.loads(line)["text"]) for line in lines)


@cache
def sha256_of(path: Path) -> str:
    """Return 16 hex digits that change with a shipped file: results of two are not compared."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
