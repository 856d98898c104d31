"""The result of a judge, `judge.json` beside the adapter: made, read again, and laid out.

    {"version": 1, "run", "model", "url", "criteria", "answers_sha256", "rows", "budget_reached",
     "refused", "tokens": {"in", "out"}, "usd",
     "tables": {"base_tuned": {"rows", "wins", "ties", "losses", "identical", "unreadable",
                               "win_rate", "low", "high", "consistency", "first_chars",
                               "tuned_chars", "warning"} or null, "right_tuned": the same},
     "documents": [{"row", "prompt", "base", "tuned", "right",
                    "base_tuned": {"verdict", "choices", "reasons"} or null, "right_tuned": …}]}

In both tables the tuned answer is the one that wins or loses. `choices` has what was chosen when
the tuned answer was called B, then when it was called A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commands.runs.judge.ask_judge import AskingOutcome, both_orders, compared_pairs, is_identical
from commands.runs.judge.figures import add_up
from commands.runs.judge.kept_verdicts import KeptVerdicts
from commands.runs.judge.pairs import TABLES, JudgedRow, answers_sha256, choose_pairs, judged_rows
from commands.runs.judge_table import JudgeTable
from commands.ui.output import table as columns_of
from commands.ui.wrap import wrapped
from infra.durable import read_json
from infra.untrusted import number, table, text, whole
from trainer.untrusted import NotPlain, parse

FILE = "judge.json"
VERSION = 1
RESULT_BYTES_MAX = 256 << 20
"""Of a score."""
TEXT_CHARS_MAX = 20_000
"""Of each text that is kept for reading; the hash is of all of it."""
TITLES = {"base_tuned": "the base", "right_tuned": "right answers"}
LEGEND = "consistent: pairs with the same verdict in both orders; chars: mean length, tuned:other"


def make_result(
    run: str,
    rows: Sequence[JudgedRow],
    judge: JudgeTable,
    kept: KeptVerdicts,
    outcome: AskingOutcome,
) -> dict[str, Any]:
    """Return the result as plain values."""
    pairs = {name: compared_pairs(rows, name, judge, kept) for name in TABLES}
    figures = {name: add_up(list(found.values())) for name, found in pairs.items()}
    return {
        "version": VERSION,
        "run": run,
        "model": judge.model,
        "url": judge.url,
        "criteria": judge.criteria,
        "answers_sha256": answers_sha256(rows),
        "rows": len(rows),
        "budget_reached": outcome.budget_reached,
        "refused": len(outcome.refused),
        "tokens": {"in": kept.usage.prompt, "out": kept.usage.answer},
        "usd": kept.usage.usd(judge.usd_per_mtok),
        "tables": {
            name: asdict(found) | {"warning": found.warning} if found else None
            for name, found in figures.items()
        },
        "documents": [
            {
                "row": row.row,
                "prompt": row.prompt[:TEXT_CHARS_MAX],
                "base": row.base[:TEXT_CHARS_MAX],
                "tuned": row.tuned[:TEXT_CHARS_MAX],
                "right": row.right[:TEXT_CHARS_MAX],
                **{
                    name: _document(row, name, judge, kept) if at in pairs[name] else None
                    for name in TABLES
                },
            }
            for at, row in enumerate(rows)
        ],
    }


def _document(row: JudgedRow, name: str, judge: JudgeTable, kept: KeptVerdicts) -> dict[str, Any]:
    """Return the verdict on one pair, with what the judge wrote in both orders."""
    if is_identical(row, name):
        return {"verdict": "tie", "choices": [], "reasons": []}
    verdicts = [kept.get(one.key) for one in both_orders(row, name, judge)]
    found = [one for one in verdicts if one is not None]
    pair = compared_pairs([row], name, judge, kept)[0]
    return {
        "verdict": pair.verdict,
        "choices": [one.choice for one in found],
        "reasons": [one.reason for one in found],
    }


def read_result(out: Path) -> dict[str, Any]:
    """Return the result in a run's folder; empty if there is none that can be read."""
    try:
        found = table(read_json(out / FILE))
    except (OSError, ValueError):
        return {}
    return found if whole(found.get("version")) == VERSION else {}


def current_result(out: Path) -> dict[str, Any]:
    """Return the result in a run's folder; empty if it is of other answers than are there now."""
    found = read_result(out)
    if not found:
        return {}
    try:
        scores = [
            table(parse((out / f"eval-{stage}.json").read_bytes(), bytes_max=RESULT_BYTES_MAX))
            for stage in ("before", "after")
        ]
    except (OSError, NotPlain):
        return {}
    rows = choose_pairs(judged_rows(*scores), whole(found.get("rows")) or 0)
    return found if answers_sha256(rows) == found.get("answers_sha256") else {}


def result_lines(result: Mapping[str, Any], width: int) -> list[str]:
    """Return the lines to print: both tables, then what makes them doubtful, and the cost."""
    tables = table(result.get("tables"))
    shown = [(name, table(tables.get(name))) for name in TABLES if table(tables.get(name))]
    lines = [f"judge  {text(result.get('model'), most=200) or ''}"]
    if not shown:
        return [*lines, "no pair of answers is judged in both orders yet"]
    lines += columns_of([_row(name, found) for name, found in shown]).splitlines()
    lines += wrapped(LEGEND, width)
    for name, found in shown:
        if warning := text(found.get("warning"), most=300):
            lines += wrapped(f"warning: against {TITLES[name]}: {warning}", width, indent="  ")
    return [*lines, *wrapped(_cost(result), width)]


def _row(name: str, found: Mapping[str, Any]) -> dict[str, object]:
    """Return one table of the result as a line."""
    rate, low, high = (
        number(found.get(key), most=1.0) or 0.0 for key in ("win_rate", "low", "high")
    )
    stays = number(found.get("consistency"), most=1.0)
    lengths = [number(found.get(key)) or 0.0 for key in ("first_chars", "tuned_chars")]
    counts = [whole(found.get(key)) or 0 for key in ("wins", "ties", "losses")]
    return {
        "tuned against": TITLES[name],
        "won/tied/lost": "/".join(map(str, counts)),
        "win rate": f"{rate:.2f} ({low:.2f} to {high:.2f})",
        "consistent": "-" if stays is None else f"{stays:.0%}",
        "chars": f"{lengths[1]:.0f}:{lengths[0]:.0f}",
    }


def _cost(result: Mapping[str, Any]) -> str:
    """Return the line about tokens, dollars and what is missing."""
    tokens = table(result.get("tokens"))
    sent, received = (whole(tokens.get(key)) or 0 for key in ("in", "out"))
    usd = number(result.get("usd"))
    parts = [f"{sent:,} tokens sent, {received:,} received"]
    parts += [f"${usd:.4f}"] if usd is not None else []
    parts += ["ended by the budget"] if result.get("budget_reached") else []
    if refused := whole(result.get("refused")):
        parts.append(f"{refused} requests refused")
    return "; ".join(parts)
