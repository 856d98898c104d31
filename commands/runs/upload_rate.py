"""Remembers how fast this computer last sent files to a provider's machines, for the next plan."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.durable import read_json, write_json
from infra.untrusted import number, table

MEASURED_BYTES_MIN = 5_000_000
"""Of fewer bytes, what passes is the asking and not the sending."""
BYTES_PER_S_MAX = 1e12


@dataclass(frozen=True, kw_only=True)
class UploadRate:
    """A measured rate and its day."""

    bytes_per_s: float
    day: str


def upload_file(cache: Path, provider: str) -> Path:
    """Return where the rate to a provider's machines is kept in qft's cache."""
    return cache / f"upload-{provider}.json"


def record_upload(cache: Path, provider: str, *, sent_bytes: int, seconds: float) -> None:
    """Keep the rate of a transfer that was large enough to be one."""
    if sent_bytes < MEASURED_BYTES_MIN or seconds <= 0:
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(upload_file(cache, provider), {"bytes_per_s": sent_bytes / seconds})
    except OSError:
        return  # no room to remember it: the next plan assumes a rate


def last_upload(cache: Path, provider: str) -> UploadRate | None:
    """Return the last measured rate to a provider's machines; None if there is none."""
    path = upload_file(cache, provider)
    try:
        found = number(table(read_json(path)).get("bytes_per_s"), most=BYTES_PER_S_MAX)
        day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError):  # never measured, or a file of somebody else
        return None
    return UploadRate(bytes_per_s=found, day=day) if found else None
