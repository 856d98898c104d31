"""Reads from a run directory how far a training is: its log, and where it went on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_group.verdict import Outcome, without_times


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stood when a start began, to see what that start does."""

    run: Path
    logged: int  # the last step in the log
    resumes: int

    @classmethod
    def of(cls, run: Path) -> Progress:
        """Read it."""
        return cls(run=run, logged=last_step(run), resumes=status(run).get("resumes", 0))

    def base(self) -> int | None:
        """Return the step that the start went on from; None if it has not come so far."""
        if not self.logged:
            return 0
        now = status(self.run)
        return now.get("resumed_from") or 0 if now.get("resumes", 0) > self.resumes else None

    def steps_done(self) -> int:
        """Return how many steps the start has logged so far."""
        base = self.base()
        return 0 if base is None else max(0, last_step(self.run) - base)


def records(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of the log; the last one may be torn."""
    log = run / "metrics.jsonl"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(run: Path) -> int:
    """Return the last step in the log; 0 if there is none."""
    found = records(run)
    return found[-1]["step"] if found else 0


def status(run: Path) -> dict[str, Any]:
    """Return what `status.json` says; nothing if there is none."""
    path = run / "status.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def params(run: Path) -> dict[int, str]:
    """Return the digest of the parameters after every step in the log."""
    return {record["step"]: record["params"] for record in records(run)}


def outcome(run: Path) -> Outcome:
    """Return what must be the same in every finished run."""
    tensors = sorted((run / "adapter").glob("*.safetensors"))
    return Outcome(
        params=params(run),
        adapter={one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in tensors},
        scores={
            stage: without_times(json.loads((run / f"eval-{stage}.json").read_text("utf-8")))
            for stage in ("before", "after")
        },
    )
