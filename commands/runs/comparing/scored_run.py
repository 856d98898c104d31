"""A run as it is compared: its scored rows, and its settings, from what is at home."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.runs.comparing.paired import Part
from commands.runs.comparing.row_figures import LossRow, loss_parts, row_parts
from commands.runs.config import TRAINER_TABLES, LoadedConfig
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, read_saved_config
from commands.ui.errors import UsageError
from infra.untrusted import table, text, whole
from trainer.untrusted import NotPlain, parse

RESULT = "eval-after.json"
RESULT_BYTES_MAX = 256 << 20


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """One row with what it adds to each figure.

    `words` is the hash of its prompt and right answer; empty where an earlier qft kept no prompt.
    `group` is what is drawn as one: the row itself, or the family of problems that it is of.
    """

    row: int
    group: str
    words: str
    right: str
    parts: Mapping[str, Part]
    tokens: int | None = None
    """Of its right answer, where a loss was measured; of a conversation, at its first answer."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """The scored rows of a run, and what it was made with.

    `held_out` is the SHA-256 of its file `data.eval`, empty where it is not recorded.
    """

    name: str
    kind: str
    rows: tuple[ScoredRow, ...]
    held_out: str
    settings: Mapping[str, object]


def read_scored_run(folder: RunFolder) -> ScoredRun:
    """Read the scores and the settings of a run.

    Raises:
        UsageError: its score is not at home, or cannot be read; the hint says how to get it.
    """
    loaded = reopen(folder)
    result = read_scores(loaded.out / RESULT, folder.name)
    documents = table(result.get("details")).get("documents")
    saved = table(read_saved_config(folder).get("rows"))
    losses = loss_parts(result)
    rows = tuple(
        _with_loss(_read_row(result, table(document)), losses)
        for document in (documents if isinstance(documents, list) else [])
    )
    return ScoredRun(
        name=folder.name,
        kind=text(result.get("kind")) or "",
        rows=rows,
        held_out=text(saved.get("data.eval")) or "",
        settings=settings_of(loaded, saved),
    )


def read_scores(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON of a score; raise UsageError, with the way to it, if there is none."""
    again = f"`qft fetch {name}` brings it; `qft eval {name} --again` measures it on this computer"
    try:
        return table(parse(path.read_bytes(), bytes_max=RESULT_BYTES_MAX))
    except FileNotFoundError:
        raise UsageError(f"`{name}` has no `{path.name}` at home", hint=again) from None
    except (NotPlain, OSError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}", hint=again) from error


def settings_of(loaded: LoadedConfig, hashes: Mapping[str, Any]) -> dict[str, object]:
    """Return what decides the training and the score, by keys such as `train.lr`.

    Data files go by their contents where they are recorded: two names of the same rows are one.
    """
    tables = loaded.config.model_dump(mode="json", include=set(TRAINER_TABLES))
    found: dict[str, object] = {}
    for name, fields in tables.items():
        if isinstance(fields, dict):
            found |= {f"{name}.{key}": value for key, value in fields.items()}
        else:
            found[name] = fields
    for key, digest in hashes.items():
        if key in found and isinstance(digest, str):
            found[key] = f"{found[key]} (sha256 {digest[:12]})"
    return found


def _with_loss(row: ScoredRow, losses: dict[int, LossRow]) -> ScoredRow:
    """Return a row with its loss, which is taken out: all answers of a row share one."""
    loss = losses.pop(row.row, None)
    if loss is None:
        return row
    return replace(row, parts={**row.parts, **loss.parts}, tokens=loss.tokens)


def _read_row(result: Mapping[str, Any], document: Mapping[str, Any]) -> ScoredRow:
    """Read one row of a result; what it lacks is empty."""
    prompt, right = document.get("prompt"), json.dumps(document.get("gold"), sort_keys=True)
    number, words = whole(document.get("row")) or 0, ""
    if isinstance(prompt, str):
        both = json.dumps([prompt, right])
        words = hashlib.sha256(both.encode()).hexdigest()
    return ScoredRow(
        row=number,
        group=text(document.get("group")) or f"row {number}",
        words=words,
        right=right,
        parts=row_parts(result, document),
    )
