"""Audits the rows before money is spent: as text for a terminal, and as an HTML page.

    python -m trainer audit --run-dir DIR [--html audit.html]

Nothing is trained or loaded but the tokenizer and the rows, which go through the very code that
feeds the training. Exit codes: 0 shown, 65 the rows cannot be trained on, 78 nor can the config.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainer import hub
from trainer.atomic import RealDisk, replace_file
from trainer.base_limits import check_token_limits
from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.datasets import load_training_rows
from trainer.data.examples import DataReport, Examples, load_examples
from trainer.data.split import Duplicates, find_duplicates
from trainer.errors import ConfigError, DataError
from trainer.eval_tables.labels import LabelEvalTable
from trainer.exit_codes import ExitCode
from trainer.pages import charts, html
from trainer.pages.audit_sets import left_out, row_texts, set_lines, set_reports
from trainer.pages.row_checks import check_files
from trainer.rundir.layout import resolve
from trainer.saving.run_day import load_run_config
from trainer.schedule import Share, make_schedule
from trainer.scoring.answers import read_answer

SAMPLES = 5
BINS = 16
LABELS_SHOWN_MAX = 30


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The findings about the rows; all of it is plain JSON but the pieces of the samples."""

    train: dict[str, Any]
    held_out: dict[str, Any] | None
    samples: list[list[tuple[str, bool]]]
    lengths: list[tuple[str, float]]
    padding_waste: float
    padding_waste_unsorted: float
    labels: list[tuple[str, int, int]]
    per_label: list[tuple[str, int, int]]
    duplicates: Duplicates
    warnings: list[str]


def audit(
    config: TrainerConfig,
    run_dir: Path,
    tokenizer: Any,
    *,
    seq2seq: bool,
    base: Mapping[str, Any] | None = None,
) -> Audit:
    """Load the rows as training does, and count, sample and compare them.

    `base` is the base's config.json; with it, what the base cannot read is found, too.

    Raises:
        DataError: the rows cannot be trained on.
        ConfigError: nor can they with this base, or this `max_length`.
    """
    length = config.train.max_length

    def load(name: str) -> Examples:
        return load_examples(
            config.data, resolve(run_dir, name), tokenizer, max_length=length, seq2seq=seq2seq
        )

    rows = load_training_rows(config.data, load)
    held_out = load(config.data.eval) if config.data.eval else None
    train = Examples(items=rows.items, report=rows.report)
    sides = [*rows.sets, *([held_out] if held_out else [])]
    read = [item for side in sides for item in side.items]
    tokens = [(one.row, one.input_ids) for one in read]
    tokens += [(one.row, one.labels) for one in read if seq2seq]
    too_long = check_token_limits(base or {}, tokens, tokenizer)
    lengths = [len(item.input_ids) for item in train.items]
    doubles = find_duplicates(row_texts(rows.sets), row_texts([held_out] if held_out else []))
    waste, unsorted = _waste(config, lengths, rows.shares)
    labels = [] if config.data.text else _labels(train, held_out)
    per_label = _per_label(config.label_table, train, held_out)
    return Audit(
        train=asdict(train.report) | set_reports(rows),
        held_out=asdict(held_out.report) if held_out else None,
        samples=[pieces(item, tokenizer, seq2seq=seq2seq) for item in _spread(train.items)],
        lengths=_histogram(lengths),
        padding_waste=waste,
        padding_waste_unsorted=unsorted,
        labels=labels,
        per_label=per_label,
        duplicates=doubles,
        warnings=[
            *too_long,
            *_warnings(config.label_table, train, doubles, (labels, per_label)),
            *train.report.warnings,
            *check_files(
                config,
                [
                    (f"data.{key}", resolve(run_dir, name), side)
                    for (key, name), side in zip(config.data.files.items(), sides, strict=True)
                ],
                tokenizer,
            ),
        ],
    )


def pieces(item: Example, tokenizer: Any, *, seq2seq: bool) -> list[tuple[str, bool]]:
    """Return the example as text pieces with whether they are learnt, decoded from the tokens."""
    if seq2seq:
        return [(tokenizer.decode(item.input_ids), False), (tokenizer.decode(item.labels), True)]
    result: list[tuple[str, bool]] = []
    start = 0
    learnt = [label != NOT_TRAINED for label in item.labels]
    for place in range(1, len(learnt) + 1):
        if place == len(learnt) or learnt[place] != learnt[start]:
            result.append((tokenizer.decode(item.input_ids[start:place]), learnt[start]))
            start = place
    return result


def as_text(found: Audit) -> str:
    """Return the audit for a terminal; without colour, learnt text stands in 【brackets】."""
    lines = [_side("to learn from", found.train)]
    if found.held_out:
        lines.append(_side("held out", found.held_out))
    lines += [
        *set_lines(found.train),
        left_out(found.train, found.held_out),
        "",
        "what is learnt stands in 【brackets】",
    ]
    for sample in found.samples:
        lines.append(
            "  "
            + _without_control_characters(
                "".join(f"【{t}】" if learnt else t for t, learnt in sample)
            )
        )
    lines += ["", "tokens per row"]
    most = max((count for _, count in found.lengths), default=1) or 1
    lines += [
        f"  {word:>11} {'█' * round(30 * count / most)} {count:.0f}"
        for word, count in found.lengths
    ]
    lines += [
        (
            f"padding: {found.padding_waste:.1%} of what is computed "
            f"({found.padding_waste_unsorted:.1%} without grouping by length)"
        ),
        (
            f"duplicates: {found.duplicates.exact} exact, {found.duplicates.near} near, "
            f"{found.duplicates.across_count} held-out rows also to be learnt"
        ),
        *(["", "answers (to learn, held out)"] if found.labels else []),
    ]
    lines += [
        f"  {count:>7} {other:>7}  {_without_control_characters(name)}"
        for name, count, other in found.labels
    ]
    if found.per_label:
        lines += ["", "labels (to learn, held out)"]
        lines += [f"  {count:>7} {other:>7}  {name}" for name, count, other in found.per_label]
    lines += ["", *(f"warning: {warning}" for warning in found.warnings)]
    return "\n".join(lines) + "\n"


def as_page(found: Audit, name: str) -> str:
    """Return the audit as a page of its own."""
    sides = [("to learn from", found.train)]
    if found.held_out:
        sides.append(("held out", found.held_out))
    keys = {"rows": "rows", "examples": "examples", "tokens": "tokens",
            "supervised_tokens": "tokens learnt", "longest": "longest, tokens",
            "truncated": "prompts shortened"}  # fmt: skip
    rows = [(word, *(side[key] for key in keys)) for word, side in sides]
    doubles = found.duplicates
    waste = (
        f"Padding will be {found.padding_waste:.1%} of what is computed; without grouping by "
        f"length it would be {found.padding_waste_unsorted:.1%}."
    )
    counts = [
        ("exact", doubles.exact),
        ("near", doubles.near),
        ("held out and learnt", doubles.across_count),
    ]
    heads = ("row to learn", "is held-out row")
    across = [html.table(heads, doubles.across)] if doubles.across else []
    legend = html.paragraph("Highlighted tokens are learnt, the others are read.")
    answers = [html.table(("answer", "to learn", "held out"), found.labels)] * bool(found.labels)
    if found.per_label:
        answers.insert(0, html.table(("label", "to learn", "held out"), found.per_label))
    plot = charts.bar_plot("tokens per row", found.lengths, x="tokens", y="rows")
    sections = [
        html.section("Warnings", *map(html.paragraph, found.warnings or ["none"])),
        html.section(
            "Rows",
            html.table(("", *keys.values()), rows),
            *map(html.paragraph, [*set_lines(found.train), left_out(found.train, found.held_out)]),
        ),
        html.section("What is learnt", legend, *map(html.marked, found.samples)),
        html.section("Lengths", plot, html.paragraph(waste)),
        html.section("Answers", *answers),
        html.section("Duplicates", html.table(("", "rows"), counts), *across),
    ]
    return html.page(f"Audit of {name}", sections)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the form of the audit."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--html", type=Path, help="also write a page there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Audit a run directory; the text goes to stdout."""
    hint = None
    try:
        config = load_run_config(args.run_dir)
        hint = hub.rely_on_cache() if _needs_hub(config, args.run_dir) else None
        found = _loaded(config, args.run_dir)
    except (ConfigError, DataError, ConnectionError) as error:
        kind = DataError if isinstance(error, DataError) else ConfigError
        raise kind([str(error), *([hint] if hint else [])]) from error
    if args.html:
        names = ", ".join(Path(one.path).name for one in config.data.train_sets)
        replace_file(args.html, as_page(found, names), disk=RealDisk())
    sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n" if args.json else as_text(found))
    return ExitCode.DONE


def _needs_hub(config: TrainerConfig, run_dir: Path) -> bool:
    model = run_dir / Path(config.model.id).expanduser()
    return not model.is_dir() or any(map(hub.parse, config.data.files.values()))


def _loaded(config: TrainerConfig, run_dir: Path) -> Audit:
    from trainer.device.deferred_modules import defer_modules
    from trainer.model import find_source, is_seq2seq, load_tokenizer, require_usable
    from trainer.model import load_config as describe

    defer_modules()
    source = find_source(config.model, run_dir)
    described = describe(source)
    require_usable(described, config.method, source)
    return audit(
        config,
        run_dir,
        load_tokenizer(source),
        seq2seq=is_seq2seq(described),
        base=described.to_dict(),
    )


def _spread(items: Sequence[Example]) -> list[Example]:
    """Return a few items spread over the file, with the first and the last."""
    count = min(SAMPLES, len(items))
    places = sorted({round(at * (len(items) - 1) / max(count - 1, 1)) for at in range(count)})
    return [items[at] for at in places]


def _histogram(lengths: Sequence[int]) -> list[tuple[str, float]]:
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // BINS))
    counts = Counter((length - low) // step for length in lengths)
    return [
        (f"{low + at * step}-{low + at * step + step - 1}" if step > 1 else str(low + at),
         float(counts[at]))
        for at in range((high - low) // step + 1)
    ]  # fmt: skip


def _waste(
    config: TrainerConfig, lengths: Sequence[int], shares: Sequence[Share]
) -> tuple[float, float]:
    """Return the share of padding in the first epoch's batches, as planned and without grouping."""
    waste = []
    for grouped in (config.train.group_by_length, False):
        table = config.train.model_copy(
            update={"group_by_length": grouped, "steps": None, "epochs": 1.0}
        )
        schedule = make_schedule(table, lengths, shares)
        real = computed = 0
        for step in range(1, schedule.steps + 1):
            batch = [lengths[at] for at in schedule.batch(step)]
            real += sum(batch)
            computed += max(batch) * len(batch)
        waste.append(1 - real / max(computed, 1))
    return waste[0], waste[1]


def _labels(train: Examples, held_out: Examples | None) -> list[tuple[str, int, int]]:
    """Count the commonest answers; whole answers, so sets of labels show as they are written."""
    learn = Counter(item.completion.strip() for item in train.items)
    keep = Counter(item.completion.strip() for item in held_out.items) if held_out else Counter()
    return [(name[:80], count, keep[name]) for name, count in learn.most_common(LABELS_SHOWN_MAX)]


def _per_label(
    table: LabelEvalTable | None, train: Examples, held_out: Examples | None
) -> list[tuple[str, int, int]]:
    """Count each label there is, by itself; empty if the run has no labels."""
    if table is None:
        return []

    def counted(side: Examples | None) -> Counter[str]:
        read = [read_answer(item.completion, table) for item in (side.items if side else ())]
        nothing = Counter({table.none: sum(not one.labels and one.readable for one in read)})
        return nothing + Counter(label for one in read for label in one.labels)

    learn, keep = counted(train), counted(held_out)
    names = [*table.labels, *([table.none] if table.kind == "multilabel" else [])]
    return [(name, learn[name], keep[name]) for name in names]


def _without_control_characters(text: str) -> str:
    """Return a text with its control characters spelt out, so that a terminal obeys none."""
    return "".join(
        f"\\x{ord(char):02x}" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char
        for char in text
    )


def _warnings(
    table: LabelEvalTable | None,
    train: Examples,
    doubles: Duplicates,
    counts: tuple[Sequence[tuple[str, int, int]], Sequence[tuple[str, int, int]]],
) -> list[str]:
    report, (labels, per_label) = train.report, counts
    found = []
    if doubles.across_count:
        found.append(f"{doubles.across_count} held-out rows are also learnt: scores will flatter")
    if report.truncated > report.examples / 10:
        found.append(
            f"{report.truncated} of {report.examples} prompts are shortened: raise max_length"
        )
    if doubles.exact > report.examples / 10:
        found.append(f"{doubles.exact} of {report.examples} rows are repeated")
    missing = [name for name, count, _ in per_label if table and name in table.labels and not count]
    if missing:
        found.append(f"no row to learn {', '.join(sorted(missing))} from")
    if table and labels and labels[0][1] > 0.9 * report.examples:
        found.append(f"{labels[0][1]} of {report.examples} answers are {labels[0][0]!r}")
    return found


def _side(word: str, report: dict[str, Any]) -> str:
    rows = f"{report['rows']} rows, {report['tokens']} tokens"
    counts = DataReport(**{one.name: report[one.name] for one in fields(DataReport)})
    return (
        f"{word}: {counts.expansion or rows}, of which "
        f"{report['supervised_tokens']} are learnt; longest {report['longest']}; "
        f"{report['truncated']} prompts shortened"
    )
