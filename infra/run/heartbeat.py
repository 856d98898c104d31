"""Reads the trainer's `status.json` into plain, checked values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infra.timestamps import parse_utc_s
from infra.untrusted import NotPlain, number, parse, table, text, whole

FORMAT_VERSION = 1
"""Of `status.json`, as it is printed with its values."""
BYTES_MAX = 1 << 20
"""Of `status.json`; an honest one has less than a thousandth of it."""
STEPS_MAX = 1 << 40
PHASE_LETTERS_MAX = 20
WORDS_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The values of one `status.json`; None or empty where it has none that can be used.

    The machine is not trusted: the values are plausible in kind and size, and nothing more.
    """

    phase: str = ""
    """One word of letters."""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint_step: int | None = None
    resumed_from: int | None = None
    resumes: int = 0
    redone_steps: int = 0
    exact: bool = True
    inexact_from: int | None = None
    message: str = ""
    """One line, printable."""
    error: str = ""
    started_at: str = ""
    """Time stamps as they are written there, by a clock that may be wrong."""
    updated_at: str = ""
    pid: int | None = None

    @property
    def is_present(self) -> bool:
        """Whether the trainer has written anything yet."""
        return self != SILENCE

    def to_json(self) -> dict[str, Any]:
        """Plain values as `status.json` spells them; empty if nothing was written."""
        if not self.is_present:
            return {}
        values = {key: None if value == "" else value for key, value in asdict(self).items()}
        return {"version": FORMAT_VERSION, **values}


SILENCE = Heartbeat()


def read_heartbeat(content: bytes | str) -> Heartbeat:
    """Read a `status.json`; one that is no JSON, too long or too deep gives `SILENCE`.

    Single values of a wrong kind are left out. Never raises.
    """
    try:
        found = table(parse(content, bytes_max=BYTES_MAX))
    except NotPlain:
        return SILENCE
    phase = text(found.get("phase"), most=PHASE_LETTERS_MAX + 1) or ""
    return Heartbeat(
        phase=phase if phase.isalpha() and len(phase) <= PHASE_LETTERS_MAX else "",
        step=whole(found.get("step"), most=STEPS_MAX),
        steps=whole(found.get("steps"), most=STEPS_MAX),
        loss=number(found.get("loss")),
        tokens_per_s=_positive(found.get("tokens_per_s")),
        eta_s=_positive(found.get("eta_s")),
        checkpoint_step=whole(found.get("checkpoint_step"), most=STEPS_MAX),
        resumed_from=whole(found.get("resumed_from"), most=STEPS_MAX),
        resumes=whole(found.get("resumes"), most=STEPS_MAX) or 0,
        redone_steps=whole(found.get("redone_steps"), most=STEPS_MAX) or 0,
        exact=found.get("exact") is not False,
        inexact_from=whole(found.get("inexact_from"), most=STEPS_MAX),
        message=text(found.get("message"), most=WORDS_MAX) or "",
        error=text(found.get("error"), most=WORDS_MAX) or "",
        started_at=text(found.get("started_at"), most=40) or "",
        updated_at=text(found.get("updated_at"), most=40) or "",
        pid=whole(found.get("pid"), most=1 << 31),
    )


def _positive(value: object) -> float | None:
    found = number(value, most=1e12)
    return found if found is not None and found >= 0 else None


def is_of_before(heartbeat: Heartbeat, *, pid: int | None, started_at: float | None) -> bool:
    """Whether a process before `pid` wrote the heartbeat, since this one has not begun to beat.

    Taken for the new one's, `failed` would be shown of a trainer that loads, and an eviction that
    is over would explain the next stop, whatever that is. Both marks must say so: the clock may
    have been set back since the start, and a pid may be used again.
    """
    beat = parse_utc_s(heartbeat.updated_at)
    if beat is None or started_at is None or not pid:
        return False
    return heartbeat.pid != pid and beat < started_at
