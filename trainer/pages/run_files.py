"""Reads what a run left behind, untrusted, as plain values, and sums it up in `report.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.pages.drawing import MOST
from trainer.untrusted import NotPlain, number, parse, table, text, whole

Json = dict[str, Any]
TABLE_BYTES_MAX = 256 << 20
"""Of the answers to all held-out rows."""
LINE_BYTES_MAX = 1 << 20
VERSIONS_MAX = 60
SHA256_LENGTH = 64
LINES_MAX = 20
"""Of what a trainer says about its failure."""
MEAN_STEPS = 10  # over which the first and the last loss are averaged
FIGURES = (
    "loss", "validation_loss", "lr", "grad_norm", "tokens", "seconds", "target_tokens",
    "gpu_memory_bytes", "gpu_use",
)  # fmt: skip
LABEL_KINDS = ("label", "multilabel")
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Errors of looking into a document that is not built as the trainer writes it."""


def read(path: Path) -> Json | None:
    """Return a JSON file as a dictionary, None if there is none or it cannot be read."""
    try:
        value = parse(path.read_bytes(), bytes_max=TABLE_BYTES_MAX)
    except (OSError, NotPlain):
        return None
    return value if isinstance(value, dict) else None


def read_log(path: Path) -> list[Json]:
    """Return the steps of a log in order; a torn last line of a run under way is left out.

    Figures are finite numbers or None. Raises `ValueError` with the line that is none.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    steps: list[Json] = []
    for count, line in enumerate(lines, 1):
        try:
            record = table(parse(line, bytes_max=LINE_BYTES_MAX))
        except NotPlain as error:
            raise ValueError(f"{path}: line {count}: {error}") from error
        step = whole(record.get("step"))
        if step is None:
            raise ValueError(f"{path}: line {count} tells no step")
        figures = {key: number(record.get(key)) for key in FIGURES if key in record}
        steps.append({"step": step, "skipped": bool(record.get("skipped")), **figures})
    for one, other in pairwise(steps):
        if other["step"] <= one["step"]:
            raise ValueError(f"{path}: step {other['step']} stands after step {one['step']}")
    return steps


def section_parts(what: str, make: Callable[[], list[Markup]]) -> list[Markup]:
    """Return the parts of a section, or a sentence if the files are not as written here."""
    try:
        return make()
    except MALFORMED as error:
        why = f"what came home is not as a training here writes it ({type(error).__name__})"
        return [html.paragraph(f"{what} cannot be shown: {why}.")]


def build_report(run_dir: Path, facts: Mapping[str, Any] | None = None) -> Json:
    """Return all that is known of a run as plain JSON; whatever is missing is null or empty."""
    steps = read_log(run_dir / "metrics.jsonl")
    before, after = (read(run_dir / f"eval-{stage}.json") for stage in ("before", "after"))
    receipt = read(run_dir / "adapter" / "qft.json") or {}
    ended = table(receipt.get("status"))
    seconds = sum(step.get("seconds") or 0.0 for step in steps)
    tokens = sum(step.get("tokens") or 0 for step in steps)
    return {
        "version": 1,
        "config": read(run_dir / "config.json"),
        "steps": len(steps),
        "first_loss": _mean_loss(steps[:MEAN_STEPS]),
        "last_loss": _mean_loss(steps[-MEAN_STEPS:]),
        "training_seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "exact": ended.get("exact"),
        "inexact_from": ended.get("inexact_from"),
        "best": receipt.get("best"),
        "skipped_steps": sum(bool(step.get("skipped")) for step in steps),
        "before": _headline(before),
        "after": _headline(after),
        "gain": table((after or {}).get("details")).get("gain"),
        "baselines": {
            name: _baseline(table(found))
            for name, found in table(table((before or {}).get("details")).get("baselines")).items()
        },
        "merged": read(run_dir / "merged-parity.json"),
        "evictions": list((facts or {}).get("evictions") or []),
        "facts": dict(facts or {}),
        "curves": {
            "loss": _curve(steps, "loss"),
            "validation": _curve(steps, "validation_loss"),
            "lr": _curve(steps, "lr"),
            "grad_norm": _curve(steps, "grad_norm"),
            "tokens_per_s": [
                [step["step"], step["tokens"] / step["seconds"]]
                for step in steps
                if step.get("seconds") and step.get("tokens")
            ],
            "gpu_memory_bytes": _curve(steps, "gpu_memory_bytes"),
            "gpu_use": _curve(steps, "gpu_use"),
        },
        "versions": _versions(receipt),
        "status": _status(read(run_dir / "status.json")),
        "finished": bool(receipt),
    }


def _baseline(found: Json) -> Json:
    """Return the figures of a baseline by metric, with those of its loss."""
    alone = {key: one for key, one in found.items() if "value" in table(one)}
    return {**alone, **table(found.get("figures")), **table(found.get("loss"))}


def _versions(receipt: Json) -> dict[str, str]:
    """Return what made an adapter, by name, as texts: libraries, precision, base, rows."""
    training = table(receipt.get("training"))
    found = {
        **table(receipt.get("versions")),
        "precision": receipt.get("precision"),
        "base, revision": training.get("model.revision"),
        **{f"base, {key}": value for key, value in table(receipt.get("base")).items()},
        **{
            f"{key}, SHA-256": training[key]
            for key in sorted(training)
            if _is_digest(training, key)
        },
        "finished at": receipt.get("finished_at"),
    }
    shown = {str(key): text(value) for key, value in [*found.items()][:VERSIONS_MAX]}
    return {key: value for key, value in shown.items() if value}


def _is_digest(training: Json, key: str) -> bool:
    return key.startswith(("data.train", "data.eval")) and len(str(training[key])) == SHA256_LENGTH


def _status(found: Json | None) -> Json | None:
    """Return what the trainer was doing when it was last heard of, None if that is not known."""
    if not found:
        return None
    return {
        "phase": text(found.get("phase"), most=40),
        "step": whole(found.get("step")),
        "steps": whole(found.get("steps")),
        "error": _lines(found.get("error")),
    }


def _lines(value: object) -> str | None:
    """Return the first lines of a text, each printable."""
    if not isinstance(value, str):
        return None
    return "\n".join(text(line) or "" for line in value[:LINE_BYTES_MAX].splitlines()[:LINES_MAX])


def _curve(steps: Sequence[Json], key: str) -> list[list[float]]:
    return [[step["step"], step[key]] for step in steps if _finite(step.get(key))]


def _headline(result: Json | None) -> Json | None:
    """Return the figures of a result, None if there is none or it is not one of ours.

    Of labels there are those of bound and of free answers, of other kinds `figures`.
    """
    if result is None:
        return None
    keys = ("metric", "decoding", "value", "low", "high", "n", "stop_rate", "parse_failures")
    more = {
        "kind": result.get("kind"),
        "better": result.get("better", "higher"),
        "loss": _loss(result.get("loss")),
    }
    try:
        details = result["details"]
        if more["kind"] in LABEL_KINDS or more["kind"] is None:
            ways = {way: details[way]["figures"] for way in ("bound", "free")}
        else:
            ways = {"figures": table(details.get("figures"))}
        if reason := _lines(details.get("not_answered")):
            more["not_answered"] = reason
        return {key: result[key] for key in keys} | ways | more
    except MALFORMED:
        return None


def _loss(found: object) -> Json | None:
    """Return the figures of a loss without its rows."""
    loss = table(found)
    return {key: value for key, value in loss.items() if key != "rows"} or None


def _mean_loss(steps: Sequence[Json]) -> float | None:
    losses = [step["loss"] for step in steps if _finite(step.get("loss"))]
    return sum(losses) / len(losses) if losses else None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < MOST
