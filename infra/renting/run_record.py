"""Records what this computer asked of a run's machine, before and after every request.

It makes resuming quicker and more certain; nothing depends on it: with the file lost, tags and
names find everything again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from infra.durable import read_json, write_json
from infra.untrusted import table


def records(directory: Path) -> list[RunRecord]:
    """The record of every run that this computer has begun and not seen removed."""
    files = sorted(directory.glob("*.json")) if directory.is_dir() else []
    return [RunRecord.load(directory, one.stem) for one in files]


@dataclass(kw_only=True)
class RunRecord:
    """What is remembered of one run; `save` makes it durable."""

    path: Path
    generation: int = 0
    """The generation that the rest of the record speaks of."""
    requested: str = ""
    """The last thing asked of the machine: create, start, deallocate, evict, delete."""
    requested_at: float = 0.0
    """When, in seconds since 1970."""
    began_at: float = 0.0
    """When the cloud says that it began to do so, by this computer's clock; 0 if unknown."""
    ended_at: float = 0.0
    """When it says that it had done so."""
    refusal: list[str] = field(default_factory=list)
    """Class, words and hint of its end, if it was accepted and came to nothing."""
    compute_ended_at: float = 0.0
    """When a removal under way ended the machine's compute, by this computer's clock."""
    released_at: float = 0.0
    """When this computer last asked for a deallocation: the log shows it as a person's."""
    ids: dict[str, str] = field(default_factory=dict)
    """Full ids of what exists or may exist, by name; written before each is asked for."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Continuation tokens of operations that were accepted and not seen to end."""
    pending_request: dict[str, Any] = field(default_factory=dict)
    """A request whose answer was not seen, to be sent again exactly. It may hold the throwaway host
    key of a machine, so that it goes as soon as there is an answer."""
    address: str = ""
    """The machine's public address."""
    caller: str = ""
    """The source that the firewall admits."""
    caller_at: float = 0.0
    """When the caller's address was last looked up."""
    refused_at: dict[str, float] = field(default_factory=dict)
    """Creates that were refused and may have left something open that lists do not show yet, as
    `region/zone/created`, and when, in seconds since 1970."""
    removing: list[list[str]] = field(default_factory=list)
    """Kind and id of what a deletion under way removes."""

    @classmethod
    def load(cls, directory: Path, run_id: str) -> RunRecord:
        """The record of `run_id`, an empty one if there is none or it cannot be read."""
        path = directory / f"{run_id}.json"
        try:
            value = read_json(path)
        except ValueError:  # a damaged memory is a lost one; the cloud's tags are the truth
            value = None
        names = {one.name for one in fields(cls)} - {"path"}
        found = table(value)
        empty = asdict(cls(path=path))
        stored: dict[str, Any] = {name: found.get(_STORED_AS.get(name, name)) for name in names}
        return cls(
            path=path,
            **{name: value for name, value in stored.items() if _fits(value, empty[name])},
        )

    def save(self) -> None:
        """Replace the file, whole and durably."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = {_STORED_AS.get(name, name): one for name, one in asdict(self).items()}
        del value["path"]
        write_json(self.path, {"version": 1, **value})

    def note(self, requested: str, at: float) -> None:
        """Record what is about to be requested; how an earlier request ended is dropped."""
        self.requested, self.requested_at = requested, at
        self.began_at, self.ended_at, self.refusal = 0.0, 0.0, []
        if requested in {"create", "start"}:
            self.compute_ended_at = 0.0
        self.save()

    def renewed(self, generation: int) -> RunRecord:
        """An empty record of another machine of the run; what is to be looked at again stays."""
        return RunRecord(path=self.path, generation=generation, refused_at=dict(self.refused_at))

    @property
    def is_closed(self) -> bool:
        """Whether it speaks of no machine, as after `close`."""
        return not (self.ids or self.requested)

    def close(self) -> None:
        """Forget the machine, which is gone; without anything to look at again, so is the file."""
        if self.refused_at:
            self.renewed(self.generation).save()
        else:
            self.delete()

    def delete(self) -> None:
        """Remove the file: nothing of the run remains."""
        self.path.unlink(missing_ok=True)


_STORED_AS = {"requested": "asked", "requested_at": "asked_at"}
"""What fields are called in the file, where that is not their name here."""


def _fits(value: object, example: object) -> bool:
    """Whether a value that was read is of the kind of another; a whole number is a number, too."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if isinstance(example, float) else type(example))
