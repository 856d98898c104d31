"""Lists what is known of a run in a table: base, method, steps, tokens, machine, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from trainer.pages import html
from trainer.text import duration
from trainer.untrusted import table, text

CONFIG_MAX = 60_000
"""Characters of the config on the page."""


def summary(report: Mapping[str, Any]) -> list[tuple[str, object]]:
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


def in_short(report: Mapping[str, Any]) -> str:
    """Return base, method, steps and machine as one line."""
    facts, config = table(report["facts"]), table(report["config"])
    base = text(facts.get("base")) or text(table(config.get("model")).get("id"))
    method = table(config.get("method"))
    rank = f" rank {method['r']}" if isinstance(method.get("r"), int) else ""
    steps = report["steps"]
    words = (
        base,
        f"{text(method.get('kind'))}{rank}" if text(method.get("kind")) else None,
        f"{steps:,} step{'' if steps == 1 else 's'}" if steps else None,
        text(facts.get("machine")),
    )
    return " · ".join(word for word in words if word)


def config_parts(report: Mapping[str, Any]) -> list[Markup]:
    """Return the config as folded JSON, and what made the adapter in a folded table."""
    versions = table(report.get("versions"))
    made = (
        [html.folded("Versions", html.table(("", ""), list(versions.items())))] if versions else []
    )
    if not report["config"]:
        return made
    shown = json.dumps(report["config"], indent=1, ensure_ascii=False)
    if len(shown) > CONFIG_MAX:
        shown = f"{shown[:CONFIG_MAX]}\n… ({len(shown) - CONFIG_MAX:,} more characters)"
    return [html.folded("Config", html.marked([(shown, False)])), *made]


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


def _between(first: float | None, last: float | None) -> str | None:
    return None if first is None or last is None else f"{first:.4g} to {last:.4g}"


def _best(found: Mapping[str, Any] | None) -> str | None:
    return None if not found else f"{found['loss']:.4g} after step {found['step']}"


def _yes(value: object) -> str | None:
    return None if value is None else "yes" if value else "no"


def _named(fields: Mapping[str, Any], words: Mapping[str, str]) -> str | None:
    parts = [
        f"{word}{html.format_number(fields[key])}" for key, word in words.items() if key in fields
    ]
    return ", ".join(parts) or None


def _rented(hours: float | None) -> str | None:
    return None if hours is None else duration(hours * 3600)


def _dollars(facts: Mapping[str, Any]) -> str | None:
    if "usd" not in facts:
        return None
    listed = " at the listed spot price; nobody was charged" if facts.get("listed") else ""
    return f"${facts['usd']:.4g}{listed}"
