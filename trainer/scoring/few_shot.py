"""A few learnt rows before the question: what the base can do by prompting alone.

Which rows are shown depends on their words alone, turn and turn about among the answers there are,
so that every run on the same rows asks the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from trainer.data.codec import Codec, Example
from trainer.data.template import Template

BETWEEN = "\n\n"


@dataclass(frozen=True, kw_only=True)
class FewShotPrompts:
    """Questions with examples before them; `fewest` is the number that had room in the longest."""

    items: tuple[Example, ...]
    fewest: int


def select_demonstrations(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return `count` of the rows (prompt, answer), one of each answer before a second of any."""
    by_answer: dict[str, list[tuple[str, str]]] = {}
    for row in sorted(set(rows), key=_rank):
        by_answer.setdefault(row[1].strip(), []).append(row)
    turns = zip_longest(*(by_answer[answer] for answer in sorted(by_answer)))
    return [row for row in chain.from_iterable(turns) if row is not None][:count]


def with_demonstrations(
    items: Sequence[Example],
    demonstrations: Sequence[tuple[str, str]],
    codec: Codec,
    prompt: Template,
) -> FewShotPrompts:
    """Write the examples before every question; where not all fit, the last ones are left out."""
    prompts, fewest = [], len(demonstrations)
    for item in items:
        ids, used = _fitting(item, demonstrations, codec, prompt)
        fewest = min(fewest, used)
        answer = item.labels[-item.answer_length :]
        whole = (ids, answer) if codec.seq2seq else ((*ids, *answer), (-100,) * len(ids) + answer)
        prompts.append(replace(item, input_ids=whole[0], labels=whole[1], prompt_length=len(ids)))
    return FewShotPrompts(items=tuple(prompts), fewest=fewest)


def _fitting(
    item: Example, demonstrations: Sequence[tuple[str, str]], codec: Codec, prompt: Template
) -> tuple[tuple[int, ...], int]:
    """Return the tokens of a question behind as many examples as fit, and how many those are."""
    for used in range(len(demonstrations), 0, -1):
        before = "".join(f"{asked}{answer}{BETWEEN}" for asked, answer in demonstrations[:used])
        ids, _, length, cut = codec.assemble(codec.encode([before + item.prompt], prompt)[0], [])
        if not cut:
            return ids[:length], used
    return item.prompt_ids, 0


def _rank(row: tuple[str, str]) -> bytes:
    return hashlib.sha256("\0".join(row).encode("utf-8", "surrogatepass")).digest()
