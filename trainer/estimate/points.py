"""Predicts published peaks of training memory from a CSV, with the formula of `qft plan`.

    python -m trainer forecast --points FILE.csv [--errors]

A row names a model, a method and a source in free text; `docs/memory-points.md` describes the
columns. A line of JSON follows for each row, in the order of the file: its `id`, `predicted_gb`
(1e9 bytes of what its `metric` names) and `fits` (where the metric asks for it). A row that is not
understood has no prediction, and a reason. `--errors` prints instead how far off they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.device.shapes import Shape, UnknownShapeError, read_shape
from trainer.errors import ConfigError
from trainer.estimate.common_bases import find_common_base
from trainer.estimate.memory import Memory, estimate
from trainer.estimate.published import (
    PointError,
    card_bytes,
    published_setup,
    published_shape,
    shards_of,
)
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters, base_bytes
from trainer.exit_codes import ExitCode

GB = 1e9
UNITS: Mapping[str, float] = MappingProxyType(
    {"gb": GB, "g": GB, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20, "bytes": 1.0, "b": 1.0}
)
FILE_BYTES_MAX = 16 << 20
BARE_FOUR_BIT = 0.5
"""Bytes of a weight in 4 bits without its scales, which `get_memory_footprint` does not count."""
TIGHT_SLACK = 1.02
"""What is reserved over what is allocated where memory ends: torch gives back its slack first."""
FIT_MARGIN = 1.1
"""What is to fit must do so with this much more than is likely."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted of a row: 1e9 bytes, and whether they fit; `reason` says why nothing is."""

    id: str
    predicted_gb: float | None = None
    fits: bool | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the reason only where there is no prediction."""
        plain = {"id": self.id, "predicted_gb": self.predicted_gb, "fits": self.fits}
        return {**plain, "reason": self.reason} if self.reason else plain


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a heading, cells stripped; a short row has empty ones.

    Raises:
        ConfigError: the file is no such table.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(
                [f"{path}: more than {FILE_BYTES_MAX >> 20} MiB are no table of points"]
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(csv.DictReader(file, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"{path}: no CSV in UTF-8: {error}"]) from error
    if found and "model" not in found[0]:
        raise ConfigError([f"{path}: its first line does not name the column `model`"])
    # Cells beyond the heading have no name, and are no text.
    return [
        {key: value.strip() for key, value in row.items() if isinstance(key, str)} for row in found
    ]


def predict(
    cells: Mapping[str, str], change: Callable[[TrainingSetup], TrainingSetup] | None = None
) -> Prediction:
    """Return the prediction of one row, given by the names of its columns; raises nothing.

    `change` is done to the training that was read, to see what a setting decides.
    """
    name = cells.get("id", "")
    try:
        predicted, fits = _predict(cells, change or (lambda work: work))
    except (PointError, UnknownShapeError) as error:
        return Prediction(id=name, reason=str(error))
    return Prediction(id=name, predicted_gb=round(predicted / GB, 3), fits=fits)


def _predict(
    cells: Mapping[str, str], change: Callable[[TrainingSetup], TrainingSetup]
) -> tuple[float, bool | None]:
    """Return the bytes that a row's metric names, and whether they fit if it asks for that."""
    base = find_common_base(cells.get("model", ""))
    if base is None:
        raise PointError(f"no base is known that is called {cells.get('model', '')[:60]!r}")
    shape, metric = read_shape(base.config), cells.get("metric", "").lower()
    if re.search(r"static|footprint", metric):
        work = published_setup(cells)
        # Loaded only: no loop has cast embeddings and norms up yet.
        work = replace(work, loop=replace(work.loop, upcast=False))
        if work.quant.four_bit and work.stored_bytes is None:
            work = replace(work, stored_bytes=BARE_FOUR_BIT)
        return base_bytes(shape, work), None
    shape = published_shape(shape, cells)
    work = change(published_setup(cells))
    memory = _sharded(estimate(shape, work), work, shards_of(cells.get("gpu", "")))
    context = work.loop.context_bytes
    card = card_bytes(cells.get("gpu", ""))
    tight = memory.allocated * TIGHT_SLACK
    if re.search(r"\bctx\b|context", metric):
        return tight + context, None
    if re.search(r"fits|oom", metric):
        if card is None:
            raise PointError(f"no card is known that is called {cells.get('gpu', '')[:40]!r}")
        return tight + context, (tight + context) * FIT_MARGIN <= card
    if "allocated" in metric:
        return memory.allocated, None
    reserved = memory.reserved - context
    if loaded := re.search(r"after load (\d+(?:\.\d+)?)", metric):
        reserved += _more_than_loaded(shape, work, float(loaded[1]) * unit_of(cells))
    if card is not None:
        reserved = max(min(reserved, card - context), tight)
    return reserved + (context if "reported" in metric else 0), None


def _sharded(memory: Memory, work: TrainingSetup, cards: int) -> Memory:
    """Return the need of one of several cards, over which a full training spreads what stays."""
    if cards == 1 or not work.full:
        return memory
    stays = memory.base + memory.adapter + memory.optimizer
    less = stays - stays / cards
    return replace(
        memory,
        base=memory.base / cards, adapter=memory.adapter / cards,
        optimizer=memory.optimizer / cards, allocated=memory.allocated - less,
        reserved=memory.reserved - less * work.loop.static_slack,
    )  # fmt: skip


def _more_than_loaded(shape: Shape, work: TrainingSetup, loaded: float) -> float:
    """Return by how much the base and the adapter took more when loaded than the formula has it."""
    memory = estimate(shape, work)
    weights = memory.base + adapter_parameters(shape, work) * work.loop.trained_bytes
    return loaded - weights * work.loop.static_slack


def unit_of(cells: Mapping[str, str]) -> float:
    """Return the bytes of the unit that a row's figures have."""
    return UNITS.get(cells.get("unit", "").lower(), GB)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of the command."""
    parser.add_argument(
        "--points",
        type=Path,
        required=True,
        metavar="FILE.csv",
        help="a row for each measured peak",
    )
    parser.add_argument(
        "--errors", action="store_true", help="print how far off the predictions are, not each"
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Print the prediction of each row, or the errors of all."""
    rows = read_rows(arguments.points)
    if arguments.errors:
        sys.stdout.write("".join(f"{line}\n" for line in error_lines(rows)))
        return ExitCode.DONE
    for row in rows:
        sys.stdout.write(json.dumps(predict(row).to_json()) + "\n")
    return ExitCode.DONE


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far predictions are from what was measured."""

    relative: tuple[float, ...]
    """Predicted over measured, minus 1, of each peak that has a prediction."""
    unknown: int
    false_fits: int
    """Rows that were predicted to fit and ran out of memory."""
    false_misses: int
    fits: int
    """Rows that ask whether something fits."""

    @property
    def median(self) -> float:
        """The error that half of the peaks stay below, without its sign."""
        return statistics.median(abs(one) for one in self.relative)

    @property
    def ninth_tenth(self) -> float:
        """The error that nine tenths of the peaks stay below, without its sign."""
        ordered = sorted(abs(one) for one in self.relative)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


def errors_of(rows: Iterable[Mapping[str, str]]) -> Errors:
    """Return the errors of the predictions of rows that have a `value`."""
    relative, unknown, fits, false_fits, false_misses = [], 0, 0, 0, 0
    for row in rows:
        found = predict(row)
        try:
            measured = float(row.get("value", ""))
        except ValueError:
            continue
        if found.predicted_gb is None:
            unknown += 1
        elif found.fits is not None:
            fits += 1
            false_fits += found.fits and not measured
            false_misses += bool(measured) and not found.fits
        elif measured > 0:
            relative.append(found.predicted_gb * GB / (measured * unit_of(row)) - 1)
    return Errors(
        relative=tuple(relative), unknown=unknown, fits=fits,
        false_fits=false_fits, false_misses=false_misses,
    )  # fmt: skip


def error_lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the errors of a table in words."""
    found = errors_of(rows)
    lines = []
    if found.relative:
        lines.append(
            f"{len(found.relative)} peaks: median error {found.median:.1%}, nine tenths within "
            f"{found.ninth_tenth:.1%}"
        )
    if found.fits:
        lines.append(
            f"{found.fits} fits and OOMs: {found.false_fits} false fits, {found.false_misses} "
            "called too large that fitted"
        )
    return [*lines, f"{found.unknown} of {len(rows)} rows without a prediction"]
