"""Says how many tokens a text has: by the base's own tokenizer if it lies here, else by script."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

SAMPLE_CHARS = 200_000
TOKENIZER_BYTES_MAX = 64 << 20
TOKENS_PER_CHARACTER = (
    # Assumed, for today's tokenizers of 32 to 256 thousand tokens, which differ by a quarter or so.
    (re.compile(r"[A-Za-z ]"), 0.25),
    (re.compile(r"[\x00-\x1f!-/0-9:-@\[-`{-~]"), 0.7),  # figures, marks, line breaks: code, tables
    (re.compile(r"[\u0080-\u024f]"), 0.5),  # letters of Latin with marks
    (re.compile(r"[\u0370-\u052f]"), 0.4),  # Greek, Cyrillic
    (re.compile(r"[\u0590-\u06ff]"), 0.5),  # Hebrew, Arabic
    (re.compile(r"[\u0900-\u0eff]"), 0.9),  # the scripts of India, Thai
    (re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"), 0.8),  # Chinese, Japanese, Korean
)
OTHER_TOKENS = 1.5
"""Of any other character, such as a picture, which is written in bytes."""


def bytes_per_token(texts: Sequence[str], tokenizer: Path | None = None) -> float:
    """Return the bytes of UTF-8 that a token of these texts has, in the mean.

    `tokenizer` is a `tokenizer.json`; it is used if the library that reads it is here.
    """
    sample = _sample(texts)
    size = sum(len(text.encode()) for text in sample)
    if not size:
        return 1 / TOKENS_PER_CHARACTER[0][1]
    counted = _tokens_by_file(sample, tokenizer) if tokenizer is not None else None
    return size / max(1.0, counted or sum(tokens_by_script(text) for text in sample))


def tokens_by_script(text: str) -> float:
    """Return about how many tokens a text has, by what its characters are."""
    total, seen = 0.0, 0
    for pattern, each in TOKENS_PER_CHARACTER:
        found = len(pattern.findall(text))
        seen += found
        total += found * each
    return total + (len(text) - seen) * OTHER_TOKENS


def _sample(texts: Sequence[str]) -> list[str]:
    """Return some of the texts, from all over, of about `SAMPLE_CHARS` together."""
    total = sum(map(len, texts))
    every = max(1, -(-total // SAMPLE_CHARS))
    return [text[:SAMPLE_CHARS] for text in texts[::every]]


def _tokens_by_file(texts: Sequence[str], path: Path) -> float | None:
    """Return the tokens of the texts by a tokenizer's file; None if it cannot be used here."""
    if importlib.util.find_spec("tokenizers") is None:
        return None
    try:
        if path.stat().st_size > TOKENIZER_BYTES_MAX:
            return None
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # the trainer says what is wrong with it
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    except Exception:  # noqa: BLE001  (the library raises plain Exception for a broken file)
        return None
    return float(sum(len(one.ids) for one in encoded))
