"""Finds the sizes of a base: by a formula, or counted on the model itself where torch is here.

The command line never loads torch: a program of the trainer counts, in a process of its own, and
what it found is remembered by the digest of the config.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from commands.runs.extras import missing, remedy
from commands.runs.home import environment, qft_home
from commands.runs.python_program import argv_of, environment_of
from infra.durable import read_json, write_json
from trainer.device.shapes import Shape, UnknownShapeError, read_shape

COUNTS = ("torch", "transformers")
COUNT_S = 300.0
"""Of a model of 100 layers a second or two, and of slow disks the import before it."""
FORMAT = 1
"""Of what is remembered; another one is counted again."""


def base_shape(config: Mapping[str, Any]) -> Shape:
    """Return the sizes of the base that a `config.json` describes.

    Raises:
        UnknownShapeError: there is no formula for it, and it cannot be counted here; says why.
    """
    try:
        return read_shape(config)
    except UnknownShapeError as error:
        lacks = missing(COUNTS)
        if lacks:
            then = f"{remedy(lacks)} to have it counted on this computer"
            raise UnknownShapeError(f"{error}; {then}") from error
    text = json.dumps(config, sort_keys=True)
    found = _counted(text, qft_home(environment()) / "cache" / "shapes")
    if isinstance(found, str):
        raise UnknownShapeError(found)
    return found


@cache
def _counted(config: str, folder: Path) -> Shape | str:
    """Return the counted sizes, remembered in `folder`, or why they could not be counted."""
    mark = f"{FORMAT} {metadata.version('transformers')} {config}"
    memory = folder / f"{hashlib.sha256(mark.encode()).hexdigest()}.json"
    try:
        return Shape.from_plain(read_json(memory) or {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        found = _count(config)
    if isinstance(found, Shape):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(memory, found.to_plain())
        except OSError:
            return found  # no room to remember it: it is counted again the next time
    return found


def _count(config: str) -> Shape | str:
    """Let the trainer build the model empty, and return its sizes or what it said."""
    with tempfile.TemporaryDirectory(prefix="qft-shape-") as scratch:
        path = Path(scratch) / "config.json"
        path.write_text(config, encoding="utf-8")
        try:
            done = subprocess.run(
                argv_of("trainer", "shape", "--config", str(path)),
                env=environment_of(environment()),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=COUNT_S,
            )
        except subprocess.TimeoutExpired:
            return f"its parameters could not be counted within {COUNT_S:.0f} s"
    try:
        return Shape.from_plain(json.loads(done.stdout))
    except (ValueError, TypeError, KeyError, AttributeError):
        lines = done.stderr.strip().splitlines() or ["the count ended without a word"]
        return lines[-1]
