"""Splits rows by group into training and held-out ones, and finds duplicates across the two."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_MAX = 20
NO_WORD = re.compile(r"[\W_]+")  # what is no letter and no digit, as `str.isalnum` has it
RowPlace = int | str  # a number, or `file:number` where there are several files


def is_held_out(group: str, *, share: float, seed: int) -> bool:
    """Return whether a group is held out, as about `share` of all groups are.

    It depends on seed and group alone: adding rows never moves another group across.
    """
    value = hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(value) < share * 2**64


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Texts that stand more than once; near ones are equal but for case, marks and spacing.

    `across` are (training row, held-out row) pairs, which make every score too good.
    """

    exact: int
    near: int
    across: tuple[tuple[RowPlace, RowPlace], ...]
    across_count: int


def find_duplicates(
    train: Sequence[tuple[RowPlace, str]], held_out: Sequence[tuple[RowPlace, str]] = ()
) -> Duplicates:
    """Compare the texts of numbered rows, within the training rows and across to the held-out."""
    first: dict[str, RowPlace] = {}
    texts: set[str] = set()
    exact = near = 0
    for number, text in train:
        key = duplicate_key(text)
        plain = short_hash(text)
        exact += plain in texts
        near += key in first and plain not in texts
        texts.add(plain)
        first.setdefault(key, number)
    across = [
        (first[key], number) for number, text in held_out if (key := duplicate_key(text)) in first
    ]
    return Duplicates(
        exact=exact, near=near, across=tuple(across[:SHOWN_MAX]), across_count=len(across)
    )


def duplicate_key(text: str) -> str:
    """Return a name that near-duplicates share; texts of marks alone share it only if equal."""
    return short_hash(normalized(text) or text)


def normalized(text: str) -> str:
    """Return a text without case, marks and spacing."""
    return NO_WORD.sub(" ", text.casefold()).strip()


def short_hash(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
