"""`samples.jsonl`: the answers to a few fixed held-out rows, before and during a training.

They are part of every checkpoint, like the log, so the file is cut back to the checkpoint that a
training goes on from. Nothing else depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.atomic import RealDisk, replace_file
from trainer.untrusted import NotPlain, parse, table, whole

SAMPLES = "samples.jsonl"
SAMPLINGS_MAX = 40
"""How often the rows of one run are answered, about: a checkpoint holds all of it."""
TEXT_MAX = 2000
"""Characters that are kept of a prompt or an answer."""
SAMPLES_BYTES_MAX = 64 << 20
"""Of the file, and of its part in a checkpoint: 20 rows, twice the samplings, a character in up
to 12 bytes of JSON."""
LINE_BYTES_MAX = 3 * TEXT_MAX * 12 + 1000


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """A held-out row that is answered again and again: its number, prompt and right answer."""

    row: int
    prompt: str
    right: str


@dataclass(frozen=True, kw_only=True)
class SampledAnswer:
    """What a model wrote, and whether it ended by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class SampleLog:
    """The rows, and their answers by the number of steps done before; steps ascend."""

    rows: tuple[SampledRow, ...] = ()
    answers: Mapping[int, tuple[SampledAnswer, ...]] = field(default_factory=dict)

    def of(self, rows: Sequence[SampledRow]) -> SampleLog:
        """Return the log of these very rows: this one, or an empty one if they are others."""
        return self if self.rows == tuple(rows) else SampleLog(rows=tuple(rows))

    def with_answers(self, step: int, answers: Sequence[SampledAnswer]) -> SampleLog:
        """Return the log with the answers after one more step."""
        return replace(self, answers=dict(sorted({**self.answers, step: tuple(answers)}.items())))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {
            "rows": [[one.row, one.prompt, one.right] for one in self.rows],
            "answers": [
                [step, [[one.text, one.stopped] for one in answers]]
                for step, answers in self.answers.items()
            ],
        }

    def write(self, path: Path) -> None:
        """Write a line per step and row, whole or not at all; without room, the old file stays."""
        lines = [
            json.dumps(
                {
                    "step": step,
                    "row": row.row,
                    "prompt": row.prompt,
                    "gold": row.right,
                    "text": answer.text,
                    "stopped": answer.stopped,
                },
                ensure_ascii=False,
            )
            for step, answers in self.answers.items()
            for row, answer in zip(self.rows, answers, strict=True)
        ]
        with suppress(OSError):  # no room: they are in the next checkpoint, and written next time
            replace_file(path, "".join(line + "\n" for line in lines), disk=RealDisk())


def read_sample_log(raw: object) -> SampleLog:
    """Return the log of a checkpoint; one without any has an empty one.

    Raises:
        ValueError: it is not built as `to_json` builds it.
    """
    if raw is None:
        return SampleLog()
    try:
        found = table(raw)
        rows = tuple(
            SampledRow(row=_number(row), prompt=_text(prompt), right=_text(right))
            for row, prompt, right in found["rows"]
        )
        answers = {
            _number(step): tuple(
                SampledAnswer(text=_text(text), stopped=stopped is True) for text, stopped in given
            )
            for step, given in found["answers"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("its samples are foreign") from error
    if any(len(given) != len(rows) for given in answers.values()):
        raise ValueError("its samples are not of its rows")
    return SampleLog(rows=rows, answers=answers)


def read_samples(path: Path) -> SampleLog:
    """Return what a file of samples holds, empty if there is none or it cannot be read.

    A step that lacks a row, as in a copy that is on its way, is left out.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        records = [table(parse(line, bytes_max=LINE_BYTES_MAX)) for line in lines]
        rows = {
            _number(one["row"]): SampledRow(
                row=_number(one["row"]), prompt=_text(one["prompt"]), right=_text(one["gold"])
            )
            for one in records
        }
        steps = sorted({_number(one["step"]) for one in records})
        given = {
            (one["step"], one["row"]): SampledAnswer(
                text=_text(one["text"]), stopped=one["stopped"] is True
            )
            for one in records
        }
        answers = {
            step: tuple(given[step, row] for row in rows)
            for step in steps
            if all((step, row) in given for row in rows)
        }
    except (OSError, NotPlain, KeyError, TypeError, ValueError):
        return SampleLog()
    return SampleLog(rows=tuple(rows.values()), answers=answers)


def shortened(text: str) -> str:
    """Return a text as it is kept: what UTF-8 has no word for replaced, and cut if it is long."""
    plain = text[:TEXT_MAX].encode("utf-8", "replace").decode("utf-8")
    return plain if len(text) <= TEXT_MAX else plain[:-1] + "…"


def _number(value: object) -> int:
    found = whole(value)
    if found is None:
        raise ValueError("no number of a row or step")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise ValueError("no text of a sample")
    return value
