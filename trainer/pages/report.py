"""Reports a run on one page and in one JSON file: learning, evictions, scores, cost.

    python -m trainer report --run-dir DIR [--facts facts.json] [--out DIR]

Reads only what a run leaves behind (`config.json`, `metrics.jsonl`, `eval-*.json`, `adapter/`) and,
if given, the laptop's facts: `{"evictions": [{"step": 45, "at": ISO time}], "usd": 0.12, "hours":
0.5, "machine": "T4 in westus2", "price_usd_per_h": 0.11, "listed": true}`, and with `"plan"` what
was planned when the run began (`trainer/pages/planned.py`). Needs no heavy library.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer.atomic import RealDisk, replace_file
from trainer.errors import DataError
from trainer.exit_codes import ExitCode
from trainer.pages import html
from trainer.pages.planned import planned_parts
from trainer.pages.run_files import MEAN_STEPS, Json, build_report, read, section_parts
from trainer.pages.timeline import timeline_parts
from trainer.text import duration


def as_page(report: Json, run_dir: Path, *, name: str) -> str:
    """Return the report as a self-contained page; answers are read from the run directory again."""
    return html.page(f"Report of {name}", [made for _, made in sections(report, run_dir)])


def sections(report: Json, run_dir: Path) -> list[tuple[str, Markup]]:
    """Return the sections of the page from top to bottom, each with the id of its element.

    A section of which nothing is known is left out. An id names one subject, whatever the run: the
    live page exchanges the sections whose HTML changed.
    """
    found: list[tuple[str, str, list[Markup]]] = [
        ("summary", "Summary", section_parts("The run", lambda: [_facts(report)])),
        ("planned", "Planned and real", _planned(report["facts"])),
        ("curves", "Learning", section_parts("The log", lambda: _curves(report))),
        ("scores", "Scores", _compared(report)),
        (
            "machine",
            "Machine and money",
            section_parts("The timeline", lambda: timeline_parts(report["facts"])),
        ),
        ("answers-before", "Answers before training", _answered(run_dir, "before")),
        ("answers-after", "Answers after training", _answered(run_dir, "after")),
        ("config", "Config", _config(report["config"])),
    ]
    return [(key, html.section(title, *parts, key=key)) for key, title, parts in found if parts]


def _facts(report: Json) -> Markup:
    return html.table(("", ""), _summary(report))


def _planned(facts: Mapping[str, Any]) -> list[Markup]:
    """Return the parts on plan and reality; none for a run that began without a plan."""
    if "plan" not in facts:
        return []
    return section_parts("The plan", lambda: planned_parts(facts["plan"]))


def _curves(report: Json) -> list[Markup]:
    events = {
        float(one["step"]): "evicted" for one in report["evictions"] if one.get("step") is not None
    }
    curves = report["curves"]
    loss = [
        html.Line(name="each step", points=curves["loss"], style="a", faint=True),
        html.Line(name=f"mean of {MEAN_STEPS}", points=_smooth(curves["loss"]), style="a"),
    ]
    plots = [html.line_plot("Training loss", loss, x="step", y="loss", events=events)]
    if curves["validation"]:
        line = html.Line(name="validation", points=curves["validation"], style="c")
        plots.append(html.line_plot("Validation loss", [line], x="step", y="loss", events=events))
    speed = html.Line(name="tokens/s", points=curves["tokens_per_s"])
    plots.append(html.line_plot("Throughput", [speed], x="step", y="tokens/s", events=events))
    return plots


def _compared(report: Json) -> list[Markup]:
    if not (report["before"] or report["after"]):
        return []
    return section_parts("The scores", lambda: _scores(report))


def _answered(run_dir: Path, stage: str) -> list[Markup]:
    result = read(run_dir / f"eval-{stage}.json")
    return section_parts("The answers", partial(_answers, result)) if result else []


def _config(config: Json | None) -> list[Markup]:
    if not config:
        return []
    return [html.marked([(json.dumps(config, indent=1, ensure_ascii=False), False)])]


BASELINE_NAMES = {
    "majority": "commonest answer",
    "tfidf_regression": "TF-IDF + regression",
    "few_shot": "base, few-shot",
}
_FIGURES = {"exact_match": "exact match", "micro_f1": "micro F1", "macro_f1": "macro F1"}


def _summary(report: Json) -> list[tuple[str, object]]:
    """Return name and value of everything known; what is not known has no line."""
    facts, config = report["facts"], report["config"] or {}
    method, train = config.get("method") or {}, config.get("train") or {}
    speed, seconds = report["tokens_per_s"], report["training_seconds"]
    rows: list[tuple[str, object]] = [
        ("base", (config.get("model") or {}).get("id")),
        (
            "method",
            _named(method, {"kind": "", "r": "rank ", "alpha": "alpha ", "dropout": "dropout "}),
        ),
        (
            "schedule",
            _named(
                train, {"batch_size": "batch ", "lr": "learning rate ", "max_length": "length "}
            ),
        ),
        ("optimizer steps", report["steps"]),
        ("loss, first and last steps", _between(report["first_loss"], report["last_loss"])),
        ("lowest validation loss", _best(report["best"])),
        ("tokens", report["tokens"]),
        ("time in training steps", duration(seconds)),
        ("tokens per second", None if speed is None else round(speed, 1)),
        ("merged model", describe_agreement(report["merged"])),
        ("evictions survived", len(report["evictions"])),
        ("steps done again", facts.get("redone_steps")),
        ("steps skipped for overflow", report["skipped_steps"]),
        ("the same bits as without interruption", _yes(report["exact"])),
        ("machine", facts.get("machine")),
        ("time rented", _rented(facts.get("hours"))),
        ("cost", _dollars(facts)),
    ]
    return [(word, fact) for word, fact in rows if fact not in (None, "")]


def _scores(report: Json) -> list[Markup]:
    """Return a table of the scores, and the gain by training."""
    found: list[tuple[str, Mapping[str, Any]]] = [
        (BASELINE_NAMES.get(name, name), figures) for name, figures in report["baselines"].items()
    ]
    for stage, word in (("before", "base"), ("after", "fine-tuned")):
        if report[stage]:
            found += [(f"{word}, {way} answers", report[stage][way]) for way in ("bound", "free")]
    rows = [(name, *(_interval(figures[key]) for key in _FIGURES)) for name, figures in found]
    documents = next(report[stage]["n"] for stage in ("after", "before") if report[stage])
    note = (
        f"{documents:,} held-out documents, 95 % intervals over them; bound answers are held to "
        "the labels, free ones are what the model writes."
    )
    parts = [html.table(("", *_FIGURES.values()), rows), html.paragraph(note)]
    if report["gain"]:
        parts.append(
            html.paragraph(f"Gain in documents wholly right: {_interval(report['gain'])}.")
        )
    return parts


def _answers(result: Json) -> list[Markup]:
    details = result["details"]
    labels = details["labels"]
    bound = details["bound"]
    heads = ("precision", "recall", "f1", "support", "answered")
    parts = [
        html.paragraph(
            f"{result['n']} documents; free answers: {result['stop_rate']:.1%} stopped by "
            f"themselves, {result['parse_failures']} could not be read, "
            f"{result['out_of_vocabulary']} words were no labels."
        ),
        *_left_out(details.get("answers") or {}),
        *_not_numbers(details.get("not_numbers") or 0),
        html.table(
            ("label", *heads),
            [
                (
                    label,
                    *(bound["per_label"][label][head] for head in heads),
                )
                for label in labels
            ],
        ),
    ]
    if "confusion" in bound:
        parts.append(
            html.heat_table("right label (rows), answered label (columns)", labels,
                            [*labels, "unreadable"], bound["confusion"])
        )  # fmt: skip
    else:
        parts.append(
            html.heat_table("right labels (rows), answered labels (columns)", labels, labels,
                            bound["cooccurrence"])
        )  # fmt: skip
    parts += _calibration(details["calibration"])
    if details.get("costs"):
        costs = details["costs"]
        parts.append(
            html.paragraph(
                f"Cost per document: {costs['as_answered']:.3g} as answered, "
                f"{costs['with_thresholds']:.3g} with the cheapest thresholds."
            )
        )
        parts.append(html.table(("label", "say it from"), list(costs["thresholds"].items())))
    return parts


def _left_out(answers: Mapping[str, int]) -> list[Markup]:
    """Return a note if constrained decoding did not have every answer among its candidates."""
    if not answers or answers["listed"] == answers["possible"]:
        return []
    return [
        html.paragraph(
            f"Bound answers are the best of {answers['listed']:,} sets of labels out of "
            f"{answers['possible']:,}; the right one of {answers['right_not_listed']:,} documents "
            "is not among them and counts as a mistake."
        )
    ]


def _not_numbers(rows: int) -> list[Markup]:
    """Return a note if the model overflowed on some documents."""
    note = f"On {rows:,} documents the model's probabilities were not numbers: no bound answer."
    return [html.paragraph(note)] if rows else []


def _calibration(found: Json) -> list[Markup]:
    """Return the reliability diagram over all probabilities, with its figures."""
    if not found["table"]:
        return []
    truth = {round(row["from"], 6): row["truth"] for row in found["table"]}
    width = round(found["table"][0]["to"] - found["table"][0]["from"], 6)
    bars = [
        (f"{at * width:.1f}", truth.get(round(at * width, 6), 0.0))
        for at in range(round(1 / width))
    ]
    axes = {"x": "stated probability, from", "y": "share that was true"}
    return [
        html.bar_plot("Calibration", bars, **axes, diagonal=True),
        html.paragraph(
            f"Expected calibration error {found['ece']:.3f}, Brier score {found['brier']:.3f}; the "
            "line is where bars of honest probabilities end."
        ),
    ]


def _smooth(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    result = []
    for at in range(len(points)):
        window = points[max(0, at - MEAN_STEPS + 1) : at + 1]
        result.append((points[at][0], sum(value for _, value in window) / len(window)))
    return result


def _between(first: float | None, last: float | None) -> str | None:
    return None if first is None or last is None else f"{first:.4g} to {last:.4g}"


def _best(found: Mapping[str, Any] | None) -> str | None:
    return None if not found else f"{found['loss']:.4g} after step {found['step']}"


def describe_agreement(found: Mapping[str, Any] | None) -> str | None:
    """Describe how often merged model and adapter answer alike; None if they were not compared.

    After a training on a quantised base, it is said of that base and of the original one.
    """
    if not found:
        return None
    rows = "held-out rows" if found["held_out"] else "learnt rows"
    agreement = f"answers {found['equal']} of {found['rows']} {rows} as the adapter does"
    trained = found.get("as_trained")
    if not trained:
        return agreement
    quantised, original = f"the {trained['quant']} base it was trained on", "the original base"
    if found.get("onto") == "quantized":
        other = f"{found['on_original']['equal']} as on {original}"
        return f"{agreement} on {quantised}, which it was merged onto, and {other}"
    other = f"{trained['equal']} as on {quantised}"
    return f"{agreement} on {original}, which it was merged onto, and {other}"


def _yes(value: object) -> str | None:
    return None if value is None else "yes" if value else "no"


def _interval(figure: Mapping[str, float]) -> str:
    span = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
    return span.replace(" ", "\u00a0")  # it stays on one line


def _named(table: Mapping[str, Any], words: Mapping[str, str]) -> str | None:
    parts = [
        f"{word}{html.format_number(table[key])}" for key, word in words.items() if key in table
    ]
    return ", ".join(parts) or None


def _rented(hours: float | None) -> str | None:
    return None if hours is None else duration(hours * 3600)


def _dollars(facts: Mapping[str, Any]) -> str | None:
    if "usd" not in facts:
        return None
    listed = " at the listed spot price; nobody was charged" if facts.get("listed") else ""
    return f"${facts['usd']:.4g}{listed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the directory to write to."""
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--facts", type=Path, help="JSON of what only the laptop knows")
    parser.add_argument("--out", type=Path, help="where to write; the run directory by default")
    parser.add_argument("--name", help="title; the run directory's name by default")


def run(args: argparse.Namespace) -> int:
    """Write `report.html` and `report.json`, each whole or not at all."""
    facts = json.loads(args.facts.read_text(encoding="utf-8")) if args.facts else None
    try:
        write(args.run_dir, args.out or args.run_dir, facts, name=args.name or args.run_dir.name)
    except ValueError as error:
        hint = "hint: `qft fetch` brings the results of the run anew"
        raise DataError([str(error), hint]) from error
    return ExitCode.DONE


def write(run_dir: Path, out: Path, facts: Mapping[str, Any] | None, *, name: str) -> Json:
    """Write both files into `out` and return the report."""
    report = build_report(run_dir, facts)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    replace_file(out / "report.json", text, disk=RealDisk())
    replace_file(out / "report.html", as_page(report, run_dir, name=name), disk=RealDisk())
    return report
