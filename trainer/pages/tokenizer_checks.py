"""Checks that the tokenizer of a base can write the answers: what it encodes decodes back.

T5's vocabulary, for instance, has no braces and no line break: an answer in JSON would be learnt as
`<unk>`, which no one can read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.row import rows_text

DECODED_MAX = 200
"""So many different answers are decoded; what a tokenizer cannot write shows in the first ones."""
COMPARED_MAX = 1000
"""So many different answers are compared; more are no labels, which must be told apart."""
UNKNOWN_PROMPTS = 0.01
"""The share of unknown tokens in what is read from which on it is told."""
LABEL_TOKENS_MAX = 64
"""Longer answers are no labels, and are not compared."""
CHARACTERS_SHOWN_MAX = 12


def check_answer_tokens(items: Sequence[Example], tokenizer: Any) -> Iterator[str]:
    """Tell of answers in which tokens are unknown, or that do not decode back to their text."""
    unknown = _unknown_id(tokenizer)
    lost: set[int] = set()
    if unknown is not None:
        lossy = [item for item in items if unknown in item.labels]
        lost = {item.row for item in lossy}
        if lossy:
            letters = _unknown_characters([item.completion for item in lossy], tokenizer, unknown)
            yield (
                f"{len(lossy)} of {len(items)} answers are learnt with "
                f"`{tokenizer.convert_ids_to_tokens(unknown)}`, as the base's tokenizer has no "
                f"token for {letters} ({rows_text([item.row for item in lossy])}): write them "
                "without, or take another base"
            )
        read = sum(item.prompt_length for item in items)
        share = sum(item.prompt_ids.count(unknown) for item in items) / max(1, read)
        if share > UNKNOWN_PROMPTS:
            yield f"{share:.0%} of the tokens that are read are unknown to the base's tokenizer"
    yield from _same_tokens(items)
    yield from _not_decoded(items, tokenizer, lost)


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id of the unknown token, unless it is a token that every answer has."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if unknown is None or unknown == tokenizer.eos_token_id else int(unknown)


def _unknown_characters(texts: Sequence[str], tokenizer: Any, unknown: int) -> str:
    """Return the characters for which a tokenizer has no token, the commonest first."""
    counts = Counter(char for text in texts[:DECODED_MAX] for char in text if not char.isspace())
    found = [char for char, _ in counts.most_common() if unknown in _encode(tokenizer, char)]
    shown = " ".join(f"`{char}`" for char in found[:CHARACTERS_SHOWN_MAX])
    return shown or "some of their words"


def _same_tokens(items: Sequence[Example]) -> Iterator[str]:
    """Tell of two answers that are learnt as the same tokens, so that neither can be told apart."""
    first: dict[tuple[int, ...], Example] = {}
    for item in items:
        if len(first) > COMPARED_MAX:
            return
        if item.targets > LABEL_TOKENS_MAX:
            continue
        learnt = tuple(label for label in item.labels if label != NOT_TRAINED)
        other = first.setdefault(learnt, item)
        if other.completion.split() != item.completion.split():
            yield (
                f"the base's tokenizer writes {other.completion.strip()[:60]!r} (row {other.row}) "
                f"and {item.completion.strip()[:60]!r} (row {item.row}) with the same tokens"
            )
            return


def _not_decoded(items: Sequence[Example], tokenizer: Any, lost: set[int]) -> Iterator[str]:
    """Tell of answers that come back as another text; spaces around one do not count."""
    first: dict[str, int] = {}
    for item in items:
        if len(first) < DECODED_MAX and item.row not in lost:
            first.setdefault(item.completion, item.row)
    breaks: list[int] = []
    others: list[tuple[int, str, str]] = []
    for text, row in first.items():
        ids = _encode(tokenizer, text)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if "".join(back.split()) != "".join(text.split()):
            others.append((row, text.strip(), back.strip()))
        elif text.strip().count("\n") > back.strip().count("\n"):
            breaks.append(row)
    if breaks:
        yield (
            f"the base's tokenizer drops line breaks: {len(breaks)} of {len(first)} answers "
            f"looked at lose them ({rows_text(breaks)})"
        )
    if others:
        row, text, back = others[0]
        yield (
            f"the base's tokenizer changes {len(others)} of {len(first)} answers looked at "
            f"({rows_text([at for at, _, _ in others])}): row {row}, {text[:60]!r}, is learnt as "
            f"{back[:60]!r}"
        )


def _encode(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [int(token) for token in encoded["input_ids"] if token != NOT_TRAINED]
