"""Shows how each label was answered: per-label figures, confusion, calibration, costs of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.charts import bar_plot

LABELS_MAX = 100
"""Of the table of labels."""
CONFUSED_MAX = 25
"""Of the table of confusions, which has a row and a column for each."""
HEADS = ("precision", "recall", "f1", "support", "answered")


def label_parts(result: Mapping[str, Any], *, file: str) -> list[Markup]:
    """Return the parts on one stage, whose result lies in `file`.

    Raises what looking into a document does that is not built as the trainer writes it.
    """
    details = result["details"]
    labels = details["labels"]
    bound = details["bound"]
    order = sorted(labels, key=lambda label: -bound["per_label"][label]["support"])
    chosen = [label for label in labels if label in set(order[:LABELS_MAX])]
    parts = [
        html.paragraph(
            f"{result['n']} documents; free answers: {result['stop_rate']:.1%} stopped by "
            f"themselves, {result['parse_failures']} could not be read, "
            f"{result['out_of_vocabulary']} words were no labels."
        ),
        *_left_out(details.get("answers") or {}),
        *_not_numbers(details.get("not_numbers") or 0),
        html.table(
            ("label", *HEADS),
            [(label, *(bound["per_label"][label][head] for head in HEADS)) for label in chosen],
        ),
        *_more(len(labels) - len(chosen), file),
    ]
    confused = [label for label in labels if label in set(order[:CONFUSED_MAX])]
    parts.append(_confusion(bound, labels, confused))
    parts += _more(len(labels) - len(confused), file)
    parts += _calibration(details["calibration"])
    if details.get("costs"):
        costs = details["costs"]
        parts.append(
            html.paragraph(
                f"Cost per document: {costs['as_answered']:.3g} as answered, "
                f"{costs['with_thresholds']:.3g} with the cheapest thresholds."
            )
        )
        thresholds = list(costs["thresholds"].items())
        parts.append(html.table(("label", "say it from"), thresholds[:LABELS_MAX]))
        parts += _more(len(thresholds) - LABELS_MAX, file)
    return parts


def _more(count: int, file: str) -> list[Markup]:
    """Return where the labels are that are not shown; the ones with most rows are."""
    return [html.note(f"{count:,} more labels, with fewer rows, in {file}.")] if count > 0 else []


def _confusion(bound: Mapping[str, Any], labels: Sequence[str], chosen: Sequence[str]) -> Markup:
    places = [labels.index(label) for label in chosen]
    single = "confusion" in bound
    cells = bound["confusion" if single else "cooccurrence"]
    columns = [*places, len(labels)] if single else places
    return html.heat_table(
        "right label (rows), answered label (columns)"
        if single
        else "right labels (rows), answered labels (columns)",
        chosen,
        [*chosen, "unreadable"] if single else chosen,
        [[cells[row][column] for column in columns] for row in places],
    )


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


def _calibration(found: Mapping[str, Any]) -> list[Markup]:
    """Return the reliability diagram over all probabilities, with its figures."""
    if not found["table"]:
        return []
    truth = {round(row["from"], 6): row["truth"] for row in found["table"]}
    width = round(found["table"][0]["to"] - found["table"][0]["from"], 6)
    bars = [
        (f"{at * width:.1f}", truth.get(round(at * width, 6), 0.0))
        for at in range(min(100, round(1 / width)))
    ]
    axes = {"x": "stated probability, from", "y": "share that was true"}
    return [
        bar_plot("Calibration", bars, **axes, diagonal=True),
        html.paragraph(
            f"Expected calibration error {found['ece']:.3f}, Brier score {found['brier']:.3f}; the "
            "line is where bars of honest probabilities end."
        ),
    ]
