"""Records what this computer asked of a run's machine, before and after every request.

It makes resuming quicker and more certain; nothing depends on it: with the file lost, tags and
names find everything again. Each of several machines of a run has a file of its own, and those who
write one file at the same time keep each other's changes.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.durable import LockTimeout, locked, read_json, write_json
from infra.untrusted import table

LOCK = ".records.lock"
"""The file that whoever replaces a record of its folder holds meanwhile."""


def records(directory: Path) -> list[RunRecord]:
    """The record of every machine that this computer has begun and not seen removed."""
    files = sorted(directory.glob("*.json")) if directory.is_dir() else []
    return [RunRecord.load(directory, one.stem) for one in files]


def records_of_nodes(directory: Path, run_id: str) -> list[RunRecord]:
    """The records of a run's machines but that of node 0, by node."""
    files = directory.glob(f"{run_id}.*.json") if directory.is_dir() else []
    found = [RunRecord.load(directory, one.stem) for one in files]
    return sorted((one for one in found if one.node), key=lambda one: one.node)


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
    private_address: str = ""
    """The machine's address among those of its run, where there are several; not written if empty.
    """
    as_read: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    """What the file held when this was read or last saved; None for a record made anew, which
    replaces whatever there is."""

    @classmethod
    def load(cls, directory: Path, run_id: str, node: int = 0) -> RunRecord:
        """The record of a machine, an empty one if there is none or it cannot be read."""
        path = directory / f"{run_id}{f'.{node}' if node else ''}.json"
        record = cls(path=path)
        found = _read(path)
        if found is not None:
            for name, value in found.items():
                setattr(record, name, value)
        record.as_read = record.values()
        return record

    @property
    def run_id(self) -> str:
        """The run that it is about."""
        return self.path.stem.partition(".")[0]

    @property
    def node(self) -> int:
        """Which of the run's machines it is about."""
        text = self.path.stem.partition(".")[2]
        return int(text) if text.isdigit() else 0

    def save(self) -> None:
        """Replace the file, whole and durably.

        What others have written since this was read stays, where this has not changed it. If they
        have begun another machine meanwhile, nothing is written: this speaks of an earlier one.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(LockTimeout):  # a memory is no reason to stop
                stack.enter_context(locked(self.path.with_name(LOCK)))
            base, now = self.as_read, None if self.as_read is None else _read(self.path)
            if base is not None and now is not None:
                mine = self.values()
                if base["generation"] == mine["generation"] != now["generation"]:
                    return
                for name, value in mine.items():
                    setattr(self, name, _merged(base[name], value, now[name]))
            value = {_STORED_AS.get(name, name): one for name, one in self.values().items()}
            if not self.private_address:
                del value["private_address"]
            write_json(self.path, {"version": 1, **value})
        self.as_read = self.values()

    def values(self) -> dict[str, Any]:
        """A copy of what goes into the file, by field."""
        values = asdict(self)
        del values["path"], values["as_read"]
        return values

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
        self.as_read = None


_STORED_AS = {"requested": "asked", "requested_at": "asked_at"}
"""What fields are called in the file, where that is not their name here."""


def _read(path: Path) -> dict[str, Any] | None:
    """What a file holds, with what it lacks as in an empty record; None if there is none."""
    try:
        value = read_json(path)
    except ValueError:  # a damaged memory is a lost one; the cloud's tags are the truth
        value = None
    if value is None:
        return None
    found, empty = table(value), RunRecord(path=path).values()
    stored = {name: found.get(_STORED_AS.get(name, name)) for name in empty}
    return {name: stored[name] if _fits(stored[name], one) else one for name, one in empty.items()}


def _merged(base: Any, mine: Any, now: Any) -> Any:
    """What somebody changed from `base`, with what others changed meanwhile; mine where both did.

    Of mappings each key is looked at by itself.
    """
    if not isinstance(base, dict):
        return now if mine == base else mine
    keys = [*now, *(key for key in mine if key not in now)]
    kept = [key for key in keys if key in (mine if mine.get(key) != base.get(key) else now)]
    return {key: (mine if mine.get(key) != base.get(key) else now)[key] for key in kept}


def _fits(value: object, example: object) -> bool:
    """Whether a value that was read is of the kind of another; a whole number is a number, too."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if isinstance(example, float) else type(example))
