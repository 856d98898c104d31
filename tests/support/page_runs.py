"""Run directories of every kind of scoring, as their results are written, for tests of the page."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.rundir.samples import SAMPLES, SampledAnswer, SampledRow, SampleLog

LABELS = ("negative", "neutral", "positive")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\u202egnirts desrever\u202c and \u2066isolated\u2069",
    "a\x00b\x1b[31mred\u200b\ufeff",
    '"><img src=x onerror=alert(1)>',
    "\ud800 alone",
    "א ב ג and 漢字 " * 20,
    "word" * 300,
    "",
)
"""Texts that a stranger may have written into a row."""


def figure(value: float, half: float = 0.05, **more: float) -> dict[str, float]:
    """Return a figure with an interval around it."""
    return {"value": value, "low": value - half, "high": value + half, **more}


def write_log(run_dir: Path, steps: int, *, gpu: bool = True) -> None:
    """Write a log whose loss falls, with validation at every tenth of the steps."""
    chance = random.Random(3)  # noqa: S311 - numbers to draw
    every = max(1, steps // 10)
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        record = {
            "step": step,
            "epoch": 0,
            "loss": 0.4 + 2.5 * math.exp(-6 * done) + chance.gauss(0, 0.1),
            "lr": 2e-4 * min(1.0, 10 * done) * (1 - done),
            "grad_norm": 1 + chance.random(),
            "tokens": 2000 + chance.randrange(300),
            "skipped": False,
            "seconds": 1.2 + 0.1 * chance.random(),
        }
        if step % every == 0:
            record["validation_loss"] = 0.5 + 2 * math.exp(-6 * done)
        if gpu:
            record |= {"gpu_memory_bytes": 9 * 10**9 + step, "gpu_use": 0.9}
        lines.append(json.dumps(record) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def write_run(run_dir: Path, results: Sequence[Mapping[str, Any]], *, steps: int = 200) -> Path:
    """Write what a finished run leaves, with these results; return its directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "adapter").mkdir(exist_ok=True)
    receipt = {"status": {"exact": True}, "best": {"step": 20, "loss": 0.5}}
    config = {
        "model": {"id": "owner/base-135M"},
        "method": {"kind": "qlora", "r": 16, "alpha": 32},
        "train": {"batch_size": 8, "lr": 2e-4, "max_length": 512},
    }
    status = {"phase": "done", "step": steps, "steps": steps, "error": None}
    for name, value in (
        ("adapter/qft.json", receipt),
        ("config.json", config),
        ("status.json", status),
        *((f"eval-{one['stage']}.json", one) for one in results),
    ):
        (run_dir / name).write_text(json.dumps(value), encoding="utf-8")
    write_log(run_dir, steps)
    return run_dir


def loss_of(value: float, *, change: float | None = None) -> dict[str, Any]:
    """Return the loss of right answers as a result has it, without its rows."""
    found: dict[str, Any] = {"figures": {"nats_per_token": figure(value), "bits_per_byte": None}}
    return found | ({} if change is None else {"change": {"nats_per_token": figure(change, 0.1)}})


def result(stage: str, kind: str, documents: Sequence[Mapping[str, Any]], **more: Any) -> Any:
    """Return a result whose score is the mean of its documents' scores."""
    value = sum(one["score"] for one in documents) / len(documents)
    found = {
        "version": 1, "stage": stage, "kind": kind, "metric": "accuracy", "decoding": "free",
        **figure(value, 0.06), "n": len(documents), "stop_rate": 0.97, "parse_failures": 1,
        "out_of_vocabulary": 0, "seconds": 9.0, "better": "higher",
        "loss": loss_of(2.0 - value, change=-0.4 if stage == "after" else None),
    }  # fmt: skip
    details = {"documents": list(documents), **more.pop("details", {})}
    return found | more | {"details": details}


def gain_of(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return a clear gain of a metric."""
    return {"metric": metric, **figure(after["value"] - before["value"], 0.08)}


def classifier(rows: int = 90) -> list[dict[str, Any]]:
    """Return the results of a run whose answers are labels; some texts are hostile."""
    found = []
    for stage, share in (("before", 0.3), ("after", 0.8)):
        chance = random.Random(5)  # noqa: S311 - answers to show
        documents: list[dict[str, Any]] = []
        confusion = [[0] * (len(LABELS) + 1) for _ in LABELS]
        for at in range(rows):
            right = at % 3
            given = right if chance.random() < share else chance.randrange(3)
            confusion[right][given] += 1
            documents.append(
                {
                    "row": at + 1,
                    "prompt": f"{HOSTILE[at % len(HOSTILE)]} text {at}\nmood: ",
                    "gold": [LABELS[right]],
                    "bound": [LABELS[given]],
                    "free": LABELS[given],
                    "stopped": at % 7 > 0,
                    "score": float(given == right),
                }
            )
        value = sum(one["score"] for one in documents) / rows
        figures = {key: figure(value) for key in ("exact_match", "micro_f1", "macro_f1")}
        heads = {"precision": 0.7, "recall": 0.6, "f1": 0.65, "support": 30, "answered": 31}
        table = [
            {"from": at / 10, "to": (at + 1) / 10, "truth": at / 10 + 0.05, "n": 9}
            for at in range(10)
        ]
        details = {
            "labels": list(LABELS),
            "answers": {"possible": 3, "listed": 3, "right_not_listed": 0},
            "not_numbers": 0,
            "bound": {
                "figures": figures,
                "per_label": dict.fromkeys(LABELS, heads),
                "confusion": confusion,
            },
            "free": {"figures": figures},
            "calibration": {"table": table, "ece": 0.04, "brier": 0.12},
            "costs": None,
            "baselines": {
                name: {"figures": {key: figure(0.4) for key in figures}}
                for name in ("majority", "tfidf_regression")
            },
        }
        made = result(stage, "label", documents, decoding="bound", details=details)
        found.append(made)
    found[1]["details"]["gain"] = gain_of(found[0], found[1], "exact_match")
    return found


def answers(kind: str, rows: int = 60) -> list[dict[str, Any]]:
    """Return the results of a run whose answers are words, or conversations; graded scores."""
    found = []
    for stage, share in (("before", 0.2), ("after", 0.7)):
        chance = random.Random(7)  # noqa: S311 - answers to show
        documents: list[dict[str, Any]] = [
            {
                "row": at + 1,
                "prompt": f"Summarise: {HOSTILE[at % len(HOSTILE)]}",
                "gold": f"the right words of row {at}",
                "free": HOSTILE[(at + 1) % len(HOSTILE)] + " as written",
                "stopped": True,
                "score": min(1.0, share * 2 * chance.random()),
                "notes": ["cut"] if at % 9 == 0 else [],
            }
            for at in range(rows)
        ]
        value = sum(one["score"] for one in documents) / rows
        figures = {
            "tokens_f1": figure(value, maximum=1.0),
            "chrf": figure(100 * value, 4.0, maximum=100.0),
        }
        details = {
            "figures": figures,
            "measures": {
                "tokens_f1": {"notes": {"cut": 3}},
                "chrf": {"signature": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0", "notes": {}},
            },
            "baselines": {
                name: {"figures": {"tokens_f1": figure(0.1), "chrf": figure(12.0, 2.0)}}
                for name in ("commonest", "empty", "nearest")
            },
            "forgetting": {
                "version": 1,
                "knowledge": figure(0.4, 0.1, n=60) | {"at_chance": False},
                "drift": figure(0.0123, 0.003, n=64, tokens=7000) if stage == "after" else {},
            },
        }
        found.append(result(stage, kind, documents, metric="tokens_f1", details=details))
    found[1]["details"]["gain"] = gain_of(found[0], found[1], "tokens_f1")
    return found


def programs(rows: int = 40) -> list[dict[str, Any]]:
    """Return the results of a run whose answers are code, of which some cannot be scored."""
    found = []
    for stage, right in (("before", 3), ("after", 15)):
        documents = [
            {
                "row": at + 1,
                "prompt": f"# problem {at}\n",
                "gold": "result = df.sum()",
                "free": "result = None" if at >= right else "result = df.sum()",
                "stopped": True,
                "score": float(at < right),
                "verdict": "passed" if at < right else "error",
                "error": "" if at < right else "AssertionError",
                "message": "" if at < right else "<b>1 != 2</b>\u202e",
                "library": "Pandas" if at % 2 else "Numpy",
            }
            for at in range(rows)
        ]
        share = {"problems": 21, "scorable": 20, "passed": right, "pass_at_1": figure(right / 40)}
        lost = [{"row": 99, "library": "Scipy", "reason": "error ImportError <script>"}]
        details = {
            "problems": rows + 1,
            "scorable": rows,
            "not_scorable": lost,
            "libraries": {
                "Numpy": share,
                "Pandas": share,
                "Scipy": {"problems": 1, "scorable": 0, "passed": 0, "pass_at_1": None},
            },
            "verdicts": {"passed": right, "error": rows - right},
            "baselines": {"empty": {"answer": "", "pass_at_1": figure(0.0, 0.02)}},
        }
        found.append(result(stage, "code", documents, metric="pass_at_1", details=details))
    found[1]["details"]["gain"] = gain_of(found[0], found[1], "pass_at_1")
    return found


def losses(rows: int = 30) -> list[dict[str, Any]]:
    """Return the results of a run of which only the loss is scored."""
    found = []
    for stage, value in (("before", 2.1), ("after", 1.6)):
        documents = [
            {"row": at + 1, "prompt": "once", "gold": f"upon a time {at}", "free": None,
             "stopped": None, "score": (at % 10) / 10}
            for at in range(rows)
        ]  # fmt: skip
        fixed = {"metric": "nats_per_token", "decoding": "none", "better": "lower",
                 "stop_rate": None, "loss": loss_of(value)}  # fmt: skip
        found.append(result(stage, "loss", documents, **fixed, **figure(value)))
    found[1]["details"]["gain"] = {"metric": "nats_per_token", **figure(-0.5, 0.1)}
    return found


def write_samples(run_dir: Path) -> None:
    """Write the answers to three rows before and during a training."""
    rows = tuple(
        SampledRow(row=at + 1, prompt=f"prompt {at} {text}", right=f"right {at}")
        for at, text in enumerate(HOSTILE[:3])
    )
    log = SampleLog(rows=rows)
    for step in (0, 50, 100, 200):
        log = log.with_answers(
            step,
            [SampledAnswer(text=f"{one.right if step == 200 else text}", stopped=step > 0)
             for one, text in zip(rows, HOSTILE, strict=False)],
        )  # fmt: skip
    log.write(run_dir / SAMPLES)


def judgement(**more: Any) -> dict[str, Any]:
    """The result of a judge as `qft eval --judge` leaves it."""
    figures = {
        "rows": 9, "wins": 5, "ties": 2, "losses": 2, "identical": 0, "unreadable": 0,
        "win_rate": 0.667, "low": 0.4, "high": 0.9, "consistency": 0.5, "first_chars": 20.0,
        "tuned_chars": 31.0, "warning": "this judge mostly judges the order",
    }  # fmt: skip
    document = {
        "row": 3, "prompt": "<i>why</i>", "base": "since", "tuned": "be\u202ecause", "right": "so",
        "base_tuned": {"verdict": "loss", "choices": ["A", "B"], "reasons": ["<script>A", "B"]},
        "right_tuned": None,
    }  # fmt: skip
    return {
        "version": 1, "model": "a judge", "criteria": "be kind", "documents": [document] * 30,
        "tables": {"base_tuned": figures, "right_tuned": None}, **more,
    }  # fmt: skip
