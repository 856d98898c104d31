"""Reports a run on one page and in one JSON file: scores, answers, learning, machine, cost.

    python -m trainer report --run-dir DIR [--facts facts.json] [--out DIR]

Reads only what a run leaves behind (`config.json`, `metrics.jsonl`, `status.json`, `eval-*.json`,
`adapter/`) and, if given, the laptop's facts: `{"evictions": [{"step": 45, "at": ISO time}], "usd":
0.12, "hours": 0.5, "machine": "T4 in westus2", "price_usd_per_h": 0.11, "listed": true}`, and with
`"plan"` what was planned when the run began (`trainer/pages/planned.py`). Needs no heavy library.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from trainer.atomic import RealDisk, replace_file
from trainer.errors import DataError
from trainer.exit_codes import ExitCode
from trainer.pages import html
from trainer.pages.browse import answer_parts
from trainer.pages.code_answers import code_parts
from trainer.pages.curves import curve_parts
from trainer.pages.forgetting import forgetting_parts
from trainer.pages.headline import explain, headline
from trainer.pages.judged import judged_parts
from trainer.pages.labels import label_parts
from trainer.pages.planned import planned_parts
from trainer.pages.report_markdown import as_markdown
from trainer.pages.run_files import LABEL_KINDS, Json, build_report, read, section_parts
from trainer.pages.samples import samples_parts
from trainer.pages.scores import score_parts
from trainer.pages.summary import config_parts, in_short, summary
from trainer.pages.timeline import timeline_parts
from trainer.pages.word_answers import word_parts

SURROGATES = re.compile("[\ud800-\udfff]")


def as_page(report: Json, run_dir: Path, *, name: str) -> str:
    """Return the report as a self-contained page; answers are read from the run directory again."""
    return html.page(
        f"Report of {html.short(name)}", [made for _, made in sections(report, run_dir)]
    )


def sections(report: Json, run_dir: Path) -> list[tuple[str, Markup]]:
    """Return the sections of the page from top to bottom, each with the id of its element.

    A section of which nothing is known is left out. An id names one subject, whatever the run: the
    live page exchanges the sections whose HTML changed. What came home and is not as the trainer
    writes it costs its section, which then says so.
    """
    results = {stage: read(run_dir / f"eval-{stage}.json") for stage in ("before", "after")}
    before, after = results["before"], results["after"]
    last, file = (after, "eval-after.json") if after else (before, "eval-before.json")
    title = DETAILS.get(_kind(last), ("Details", None))[0]
    found: list[tuple[str, str, str, Callable[[], list[Markup]]]] = [
        ("headline", "", "The headline", lambda: _headline(report)),
        ("scores", "Before and after", "The scores", lambda: _scores(report)),
        (
            "answers", "What it got wrong", "The answers",
            lambda: answer_parts(before if after else None, last, file=file),
        ),
        ("judged", "Judged answers", "The judge's result", lambda: judged_parts(run_dir)),
        ("samples", "Answers while training", "The samples", lambda: samples_parts(run_dir)),
        (
            "forgetting", "What it still knows", "What it still knows",
            lambda: forgetting_parts(before, after),
        ),
        ("curves", "Learning", "The log", lambda: curve_parts(report)),
        ("machine", "Machine and money", "The timeline", lambda: timeline_parts(report["facts"])),
        ("planned", "Planned and real", "The plan", lambda: _planned(report["facts"])),
        ("summary", "The run", "The run", lambda: [html.table(("", ""), summary(report))]),
        ("details", title, "The answers", lambda: _details(before, after)),
        ("config", "Config and versions", "The config", lambda: config_parts(report)),
    ]  # fmt: skip
    made = [(key, title, section_parts(what, make)) for key, title, what, make in found]
    return [(key, html.section(title, *parts, key=key)) for key, title, parts in made if parts]


def _headline(report: Json) -> list[Markup]:
    parts = [html.render("headline", headline(report))]
    return parts + [html.note(line) for line in (in_short(report), explain(report)) if line]


def _scores(report: Json) -> list[Markup]:
    return score_parts(report) if report["before"] or report["after"] else []


def _planned(facts: Mapping[str, Any]) -> list[Markup]:
    """Return the parts on plan and reality; none for a run that began without a plan."""
    return planned_parts(facts["plan"]) if "plan" in facts else []


DETAILS: Mapping[str, tuple[str, Callable[..., list[Markup]]]] = MappingProxyType(
    {
        "label": ("Label by label", label_parts),
        "multilabel": ("Label by label", label_parts),
        "code": ("Library by library", code_parts),
        "text": ("How answers were measured", word_parts),
        "chat": ("How answers were measured", word_parts),
        "choice": ("How answers were measured", word_parts),
    }
)
"""For each kind of scoring, the title of its own section and what makes its parts."""


def _details(before: Json | None, after: Json | None) -> list[Markup]:
    """Return the parts that one kind of answer has, with those from before training folded."""
    found = []
    for stage, result in (("after", after), ("before", before)):
        make = DETAILS.get(_kind(result))
        found.append(make[1](result, file=f"eval-{stage}.json") if result and make else [])
    now, was = found
    if not now:
        return was
    return [*now, html.folded("The same before training", *was)] if was else now


def _kind(result: Json | None) -> str:
    """Return the kind of a result; the first ones had labels and said no kind."""
    return str((result or {}).get("kind", LABEL_KINDS[0]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the directory to write to."""
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--facts", type=Path, help="JSON of what only the laptop knows")
    parser.add_argument("--out", type=Path, help="where to write; the run directory by default")
    parser.add_argument("--name", help="title; the run directory's name by default")


def run(args: argparse.Namespace) -> int:
    """Write `report.html`, `report.json` and `report.md`, each whole or not at all."""
    facts = json.loads(args.facts.read_text(encoding="utf-8")) if args.facts else None
    try:
        write(args.run_dir, args.out or args.run_dir, facts, name=args.name or args.run_dir.name)
    except ValueError as error:
        hint = "hint: `qft fetch` brings the results of the run anew"
        raise DataError([str(error), hint]) from error
    return ExitCode.DONE


def write(run_dir: Path, out: Path, facts: Mapping[str, Any] | None, *, name: str) -> Json:
    """Write the page, its data and the Markdown into `out`, and return the report."""
    report = build_report(run_dir, facts)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    text = SURROGATES.sub(lambda half: f"\\u{ord(half.group()):04x}", text)  # UTF-8 has none
    replace_file(out / "report.json", text, disk=RealDisk())
    replace_file(out / "report.html", as_page(report, run_dir, name=name), disk=RealDisk())
    before, after = (read(run_dir / f"eval-{stage}.json") for stage in ("before", "after"))
    short = as_markdown(report, before, after, name=name)
    replace_file(out / "report.md", short, disk=RealDisk())
    return report
