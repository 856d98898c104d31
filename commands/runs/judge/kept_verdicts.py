"""Keeps every verdict at once, so that a rerun costs nothing and a killed one goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from commands.runs.judge.prompts import VERSION
from commands.runs.judge.tokens import Usage
from commands.runs.judge.verdicts import Choice
from infra.durable import append_line
from infra.untrusted import NotPlain, parse, table, text, whole

FILE = "judge-verdicts.jsonl"
LINE_BYTES_MAX = 1 << 16
REASON_CHARS_MAX = 600


@dataclass(frozen=True, kw_only=True)
class KeptVerdict:
    """What a judge chose of two answers in one order, why, and what that used."""

    choice: Choice
    reason: str
    usage: Usage


class KeptVerdicts:
    """An append-only file of verdicts; each is on the disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, KeptVerdict] = {}
        self.usage = Usage()
        """Of all verdicts in the file, also of those on answers that have changed since."""
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        for line in lines:
            self._read(line)

    def get(self, key: str) -> KeptVerdict | None:
        """Return the verdict under a key; None if there is none yet."""
        return self._found.get(key)

    def add(self, key: str, verdict: KeptVerdict) -> None:
        """Keep a verdict, durably; raises OSError if there is no room."""
        used = verdict.usage
        line = {
            "key": key,
            "choice": verdict.choice,
            "reason": verdict.reason,
            "prompt_tokens": used.prompt,
            "answer_tokens": used.answer,
            "requests": used.requests,
        }
        append_line(self._path, json.dumps(line))
        self._found[key] = verdict
        self.usage += used

    def _read(self, line: bytes) -> None:
        """Take a line; one that a crash tore, or that is none of ours, counts as not there."""
        try:
            found = table(parse(line, bytes_max=LINE_BYTES_MAX))
            choice = Choice(str(found.get("choice")))
        except (NotPlain, ValueError):
            return
        used = Usage(
            prompt=whole(found.get("prompt_tokens")) or 0,
            answer=whole(found.get("answer_tokens")) or 0,
            requests=whole(found.get("requests")) or 0,
        )
        reason = text(found.get("reason"), most=REASON_CHARS_MAX) or ""
        self.usage += used
        self._found[str(found.get("key"))] = KeptVerdict(choice=choice, reason=reason, usage=used)


def verdict_key(model: str, criteria: str, prompt: str, first: str, second: str) -> str:
    """Return the key of one request: all that a verdict depends on, the order included."""
    parts = json.dumps([VERSION, model, criteria, prompt, first, second])
    return hashlib.sha256(parts.encode()).hexdigest()
