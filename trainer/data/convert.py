"""Converts a published data set to training and held-out rows, both files or none.

    python -m trainer convert jigsaw train.csv --out data --held-out 0.1

Writes `train.jsonl` and `eval.jsonl`, each whole or not at all, and prints what was left out and
how often each class stands. Exit codes: 0 done, 65 the source cannot be converted, 78 nothing can
be written where the rows shall go, 74 the disk failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.atomic import RealDisk, clear_partials, partial_of
from trainer.data.converters import (
    BENIGN_PUBLISHED,
    FORMATS,
    ConversionStats,
    ConvertOptions,
    PublishedFormat,
)
from trainer.data.header import ROWS_COMPARED, header_problem
from trainer.data.rows import stream_rows
from trainer.data.split import is_held_out, normalized, short_hash
from trainer.errors import DataError, TrainerError
from trainer.exit_codes import ExitCode

NO_PLACE = (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError)
UNEVEN = 0.25  # a share of held-out rows this far from the one asked for is a warning
NO_CONTENT = ("group", "code_context")
"""What is neither read nor answered; programs that test problems are alike where these are not."""
LENGTH = 1024
"""In tokens: no longer are the rows of the published experiment with Jigsaw."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The counts of a conversion: rows of both sides, and the statistics of the source.

    `across` counts held-out rows that equal a training row but for case, marks and spacing; they
    flatter every score. `unmeasured`: rows of any length were kept although the published rule has
    a limit. `usage_note` is what the authors ask of users. `share` is that of the groups to hold
    out, to be compared with that of the rows.
    """

    train: int
    held_out: int
    across: int
    stats: ConversionStats
    unmeasured: bool = False
    usage_note: str = ""
    share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        stats = self.stats
        return {
            "rows": {"train": self.train, "eval": self.held_out},
            "read": stats.read,
            "kept": stats.kept,
            "left_out": dict(stats.left_out),
            "places": stats.places,
            "mended": dict(stats.mended),
            **({"notes": notes} if (notes := stats.notes.lines()) else {}),
            "classes": dict(stats.classes),
            "across": self.across,
        }

    def to_text(self) -> str:
        """Return counts and warnings as lines for a terminal."""
        lines = [self.stats.table(), f"{self.train} to learn, {self.held_out} held out"]
        if not self.train or not self.held_out:
            side = "to learn" if self.held_out else "held out"
            lines.append(
                f"warning: no row is {side}; another share (--held-out) or seed draws others"
            )
        elif self.share is not None and abs(self._held_out_share - self.share) > UNEVEN:
            lines.append(
                f"warning: {self._held_out_share:.0%} of the rows are held out where "
                f"{self.share:.0%} was asked for: groups are of unlike size; another seed draws "
                "others"
            )
        if self.across:
            lines.append(
                f"warning: {self.across} held-out rows stand among those to learn too, "
                "and scores on them will flatter"
            )
        if self.unmeasured:
            lines.append(
                f"warning: long rows were kept; the published rule drops those over "
                f"{LENGTH} tokens of the base, which `--tokenizer MODEL` names"
            )
        lines += [f"mind: {self.usage_note}"] * bool(self.usage_note)
        return "\n".join(lines)

    @property
    def _held_out_share(self) -> float:
        return self.held_out / (self.train + self.held_out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the format, the source and the options that select rows."""
    parser.add_argument("format", type=PublishedFormat, choices=list(PublishedFormat))
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(), help="directory to write to")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of groups held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benign", type=int, help="jigsaw: rows drawn")
    parser.add_argument("--tokenizer", help="jigsaw: drop rows over --max-length of its tokens")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Convert; the table goes to stderr."""
    options = _options(args)
    try:
        done = convert(args.format, args.source, args.out, options=options, held_out=args.held_out)
    except OSError as error:
        where = f"{error.filename or args.out}: {error.strerror or error}"
        text = f"--out: no rows could be written: {where}"
        raise (TrainerError(text) if isinstance(error, NO_PLACE) else OSError(text)) from error
    sys.stderr.write(f"{done.to_text()}\n")
    if args.json:
        sys.stdout.write(json.dumps(done.to_json(), ensure_ascii=False) + "\n")
    return ExitCode.DONE


def _options(args: argparse.Namespace) -> ConvertOptions:
    """Return how to select rows; raise DataError for an option without any effect."""
    values = {"benign": args.benign, "tokenizer": args.tokenizer, "max-length": args.max_length}
    given = [f"--{name}" for name, value in values.items() if value is not None]
    if given and not FORMATS[args.format].selectable:
        raise DataError([f"{', '.join(given)}: {args.format} has no such choice; leave it out"])
    if args.max_length is not None and args.tokenizer is None:
        raise DataError(["--max-length counts tokens: say of which base with --tokenizer MODEL"])
    fits = length_filter(args.tokenizer, args.max_length or LENGTH) if args.tokenizer else None
    benign = BENIGN_PUBLISHED if args.benign is None else args.benign
    return ConvertOptions(seed=args.seed, benign=benign, fits=fits)


def convert(
    kind: str, source: Path, out: Path, *, options: ConvertOptions, held_out: float
) -> Converted:
    """Stream `source` into `out/train.jsonl` and `out/eval.jsonl`, split by group.

    Raises:
        DataError: the source cannot be converted, or is one of the two files itself; then neither
            is touched.
        OSError: they cannot be written.
    """
    published = FORMATS[kind]
    out.mkdir(parents=True, exist_ok=True)
    targets = [out / "train.jsonl", out / "eval.jsonl"]
    if any(target.exists() and source.exists() and target.samefile(source) for target in targets):
        raise DataError([f"{source}: the rows would take its place; name another --out"])
    for path in targets:
        clear_partials(path, disk=RealDisk())
    partial = [partial_of(path) for path in targets]
    stats = ConversionStats()
    counts = [0, 0]
    keys: tuple[list[str], list[str]] = ([], [])
    try:
        with partial[0].open("w", encoding="utf-8") as learn, \
             partial[1].open("w", encoding="utf-8") as keep:  # fmt: skip
            for row in published.convert(source, options, stats):
                side = is_held_out(str(row["group"]), share=held_out, seed=options.seed)
                counts[side] += 1
                keys[side].append(_content_key(row))
                (keep if side else learn).write(json.dumps(row, ensure_ascii=False) + "\n")
            for file in (learn, keep):
                file.flush()
                os.fsync(file.fileno())
        if not stats.kept:
            first = [row.fields for row in islice(stream_rows(source, []), ROWS_COMPARED)]
            headless = f"\n{source}: {why}" if (why := header_problem(first)) else ""
            raise DataError([f"{source}: no row could be kept\n{stats.table()}{headless}"])
        for path, target in zip(partial, targets, strict=True):
            path.replace(target)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    learnt = set(keys[0])
    across = sum(key in learnt for key in keys[1])
    return Converted(
        train=counts[0],
        held_out=counts[1],
        across=across,
        stats=stats,
        unmeasured=published.selectable and options.fits is None,
        usage_note=published.usage_note,
        share=held_out,
    )


def _content_key(row: Mapping[str, Any]) -> str:
    """Return a hash of a row's texts, equal for rows that differ in case, marks or spacing."""
    text = json.dumps({key: value for key, value in row.items() if key not in NO_CONTENT})
    return short_hash(normalized(text))


def length_filter(tokenizer: str, max_length: int) -> Callable[[str], bool]:
    """Return a function that says whether a text has at most `max_length` tokens.

    Raises:
        DataError: there is no such tokenizer, or its hub does not answer.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError([f"--tokenizer: `{tokenizer}` cannot be loaded: {reason}"]) from error

    def fits(text: str) -> bool:
        # A character is four bytes at most, and no token is less than a byte.
        return len(text) <= max_length // 4 or (
            len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"]) <= max_length
        )

    return fits
