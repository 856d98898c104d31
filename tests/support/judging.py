"""Rows with answers, and a judge that is asked about them without the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands.runs.judge.ask_judge import ask_all, compared_pairs
from commands.runs.judge.endpoint import Endpoint
from commands.runs.judge.figures import add_up
from commands.runs.judge.kept_verdicts import KeptVerdicts
from commands.runs.judge.pairs import JudgedRow
from commands.runs.judge_table import JudgeTable
from support.judge_service import JudgeService
from trainer.secret import Secret

KEY = "sk-a-very-secret-key-1234567890"
PRICES = {"in": 1.0, "out": 2.0}


def table_of(service: JudgeService, **more: Any) -> JudgeTable:
    """Return a table `judge` that names a service."""
    return JudgeTable.model_validate({"url": service.url, "model": "m", "key_env": "JK", **more})


def endpoint_of(service: JudgeService, naps: list[float] | None = None, **more: Any) -> Endpoint:
    """Return the endpoint of a service; what it would sleep goes to `naps`."""
    slept = naps if naps is not None else []
    fields: dict[str, Any] = {
        "url": service.url, "model": "m", "key": Secret(KEY), "loopback": True,
        "clock": lambda: 0.0, "wall": lambda: 0.0, "sleep": slept.append,
        "on_message": lambda _text: None,
    }  # fmt: skip
    return Endpoint(**{**fields, **more})


def rows_of(*answers: tuple[str, str, str]) -> list[JudgedRow]:
    """Return rows with these answers: base, tuned, right."""
    return [
        JudgedRow(row=at + 1, prompt=f"question {at}", base=base, tuned=tuned, right=right)
        for at, (base, tuned, right) in enumerate(answers)
    ]


BETTER = rows_of(*[(f"wrong {at}", f"right {at}", f"right answer {at}") for at in range(6)])


def judged(
    service: JudgeService, rows: list[JudgedRow], path: Path, **more: Any
) -> tuple[Any, KeptVerdicts, list[float]]:
    """Ask for all verdicts on some rows; return what came of it."""
    judge, kept = table_of(service, **more), KeptVerdicts(path / "verdicts")
    naps: list[float] = []
    outcome = ask_all(
        rows, judge, kept, endpoint_of(service, naps),
        new_marker=lambda: "[0123456789abcdef]", on_progress=lambda *_: None,
    )  # fmt: skip
    return outcome, kept, naps


def figures(service: JudgeService, rows: list[JudgedRow], kept: KeptVerdicts, name: str) -> Any:
    """Return the figures of one table."""
    return add_up(list(compared_pairs(rows, name, table_of(service), kept).values()))
