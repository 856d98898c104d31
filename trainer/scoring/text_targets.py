"""Counts the bytes of text that the targets of an example stand for; pure.

Bits per byte compare models with different tokenizers, so they are about the text alone: end tokens
and other control tokens are left out. Tokenizers that lose characters (T5's: line breaks, words it
does not know) have no true bytes: there is no count unless decoding gives the text back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trainer.data.codec import NOT_TRAINED, Example

CHARACTER_TOKENS_MAX = 4
"""Tokens of one character, at most: its bytes in UTF-8."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True)
class TextTargets:
    """Which targets are text, and their bytes in UTF-8.

    `are_text` has an entry for each target, in order. `bytes` is None where they are not known.
    """

    are_text: tuple[bool, ...]
    bytes: int | None


def text_targets(item: Example, *, control: Collection[int], decode: Decode) -> TextTargets:
    """Return the text among the targets of an example.

    `control` are the ids of control tokens, and `decode` gives the text of ids, control tokens
    included. The first token of a causal sequence is no target, so its bytes do not count; nor do
    the tokens of a character that a row's end cuts through.
    """
    places = [at for at, label in enumerate(item.labels) if label != NOT_TRAINED]
    ids = [item.labels[at] for at in places]
    first = 1 if len(item.input_ids) > item.prompt_length and places[:1] == [0] else 0
    marks = [number not in control for number in ids]
    stretches = list(pairwise(accumulate((tokens for tokens, _ in item.learnt), initial=0)))
    if not stretches or stretches[-1][1] != len(ids):
        return TextTargets(are_text=tuple(marks[first:]), bytes=None)
    total: int | None = 0
    for (begin, end), (_, text) in zip(stretches, item.learnt, strict=True):
        inside = [at for at in range(begin, end) if marks[at]]
        untargeted = sum(at < first for at in inside)
        written = _without(text, {decode([one]) for one in ids[begin:end] if one in control})
        cut = ids[end - 1] not in control  # an end token would follow
        found = _counted([ids[at] for at in inside], untargeted, written, decode, cut=cut)
        if found is None or total is None:
            total = None
            continue
        start, stop, size = found
        total += size
        for at in (*inside[:start], *inside[stop:]):
            marks[at] = False
    return TextTargets(are_text=tuple(marks[first:]), bytes=total)


def _counted(
    ids: Sequence[int], untargeted: int, text: str, decode: Decode, *, cut: bool
) -> tuple[int, int, int] | None:
    """Return (start, stop, bytes): the ids that stand for whole characters of `text`.

    The first `untargeted` ids do not count. None if the ids do not give the text back.
    """
    stop, whole = len(ids), decode(ids)
    while whole != text and cut and stop > max(untargeted, len(ids) - CHARACTER_TOKENS_MAX):
        if text.startswith(whole):
            break
        stop -= 1
        whole = decode(ids[:stop])
    if whole != text and not (cut and text.startswith(whole)):
        return None
    for start in range(untargeted, min(stop, untargeted + CHARACTER_TOKENS_MAX) + 1):
        head = decode(ids[:start]) if start else ""
        if whole.startswith(head):
            return start, stop, len(_utf8(whole)) - len(_utf8(head))
    return None


def _without(text: str, marks: Collection[str]) -> str:
    for mark in marks:
        text = text.replace(mark, "")
    return text


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
