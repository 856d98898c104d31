"""Compares the tokens of a base's tokenizer with the rows of its embedding, from its files alone.

A token beyond the embedding shows only when it is looked up: on the rented machine, in a step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.base_limits import embedding_rows

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADDED = "added_tokens.json"
JSON_BYTES_MAX = 256 << 20
ROLES = ("pad_token", "eos_token", "bos_token", "unk_token")


def token_faults(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return which tokens that every training uses lie beyond the base's embedding, and the fix.

    A tokenizer may know more tokens than that, as long as nobody writes them: Gemma 3 1B's has one
    for pictures, which it cannot see.
    """
    rows = embedding_rows(config)
    if rows is None:
        return []
    table = _read(folder / TOKENIZER)
    vocabulary = table.get("model", {}).get("vocab") if isinstance(table.get("model"), dict) else {}
    ids = _ids(vocabulary)
    has = f"the base's embedding has {rows} rows"
    if ids and max(ids.values()) >= rows:
        beyond = sum(number >= rows for number in ids.values())
        other = f"{len(ids)} tokens, of which {beyond} lie beyond"
        return [f"{TOKENIZER}: {other}: {has}: take the tokenizer that was published with it"]
    ids.update(_added(folder, table))
    found = []
    for file, role, text in _roles(folder):
        number = ids.get(text)
        if number is not None and number >= rows:
            fix = _fix(role)
            found.append(f"{file}: `{role}` {text!r} is number {number}, and {has}: {fix}")
    return found


def _fix(role: str) -> str:
    """Return what to do about a token of a role that has no row."""
    if role == "pad_token":
        return "delete `pad_token` there (`qft` pads by a token that exists), or resize the base"
    return "name a token that exists, take the base's own tokenizer, or resize the base"


def _roles(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each role that a token has, with the file that says so, and the token's text."""
    for file in (SETTINGS, SPECIAL):
        settings = _read(folder / file)
        for role in ROLES:
            value = settings.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                yield file, role, text


def _added(folder: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens that were added to the vocabulary, with their numbers."""
    found = _ids(_read(folder / ADDED))
    listed = tokenizer.get("added_tokens")
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, dict):
            found |= _ids({str(one.get("content")): one.get("id")})
    decoder = _read(folder / SETTINGS).get("added_tokens_decoder")
    for number, one in decoder.items() if isinstance(decoder, dict) else []:
        if isinstance(one, dict) and str(number).isdecimal():
            found |= _ids({str(one.get("content")): int(number)})
    return found


def _ids(table: object) -> dict[str, int]:
    """Return the entries of a table of tokens that have a number."""
    if not isinstance(table, dict):
        return {}
    return {text: number for text, number in table.items() if type(number) is int}


def _read(path: Path) -> dict[str, Any]:
    """Return a table of JSON; an empty one if there is none, which is told elsewhere."""
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
