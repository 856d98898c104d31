"""Keeps what belongs together on one side of a split, and tells what stands on both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.converters import digest, normalized

SHOWN_MAX = 20


def is_held_out(group: str, *, share: float, seed: int) -> bool:
    """Tell whether a group belongs to the held-out side; about `share` of all groups do.

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
    across: tuple[tuple[int, int], ...]
    across_count: int


def find_duplicates(
    train: Sequence[tuple[int, str]], held_out: Sequence[tuple[int, str]] = ()
) -> Duplicates:
    """Compare the texts of numbered rows, within the training rows and across to the held-out."""
    first: dict[str, int] = {}
    texts: set[str] = set()
    exact = near = 0
    for number, text in train:
        key = digest(normalized(text) or text)
        plain = digest(text)
        exact += plain in texts
        near += key in first and plain not in texts
        texts.add(plain)
        first.setdefault(key, number)
    across = [
        (first[key], number)
        for number, text in held_out
        if (key := digest(normalized(text) or text)) in first
    ]
    return Duplicates(
        exact=exact, near=near, across=tuple(across[:SHOWN_MAX]), across_count=len(across)
    )


def split(
    rows: Iterable[Mapping[str, Any]], *, share: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return (training rows, held-out rows), whole groups each; a row without one is its own."""
    sides: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row in rows:
        group = str(row.get("group", digest(repr(sorted(row.items())))))
        sides[is_held_out(group, share=share, seed=seed)].append(row)
    return sides
