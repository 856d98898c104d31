"""Makes all ranks of a training begin with one and the same state, and finds out if they do not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainer.errors import CardsDisagree, ConfigError
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs
from trainer.saving.checkpoint import Snapshot, Store
from trainer.saving.packed import pack, unpack
from trainer.saving.state import TrainingState, digest


def find_newest(
    job: JobContext, store: Store, *, tensor_bytes_max: int, below: int | None
) -> Snapshot | None:
    """Return the newest checkpoint that is whole for every rank, of a step under `below`."""
    if job.peers.local_size < job.peers.size:
        return find_anywhere(job, store, tensor_bytes_max=tensor_bytes_max, below=below)
    while True:
        found = store.load_newest(
            tensor_bytes_max=tensor_bytes_max, on_message=job.on_message, below=below
        )
        steps = job.peers.gather(found.step if found else 0)
        if len(set(steps)) == 1:
            return found
        below = min(steps) + 1
        job.on_message(
            f"warning: not every rank can read the checkpoint of step {max(steps)}; all go back to "
            f"{f'that of step {min(steps)}' if min(steps) else 'the beginning'}"
        )


def find_anywhere(
    job: JobContext, store: Store, *, tensor_bytes_max: int, below: int | None
) -> Snapshot | None:
    """Return the newest checkpoint that is whole on any machine; each then has it on its disk.

    Raises:
        CardsDisagree: what arrived is not what was sent.
    """
    peers = job.peers
    found = store.load_newest(
        tensor_bytes_max=tensor_bytes_max, on_message=job.on_message, below=below
    )
    steps = peers.gather(found.step if found else 0)
    if len(set(steps)) == 1:
        return found
    source = steps.index(max(steps))
    job.on_message(f"the newest checkpoint is that of step {max(steps)}, of rank {source}")
    packed = pack(found) if found is not None and peers.rank == source else None
    received = peers.broadcast(packed, source)
    if len(set(peers.gather(hashlib.sha256(received).hexdigest()))) > 1:
        raise CardsDisagree("a checkpoint did not arrive as it was sent; start again")
    snapshot = unpack(received)
    if job.writers.save and steps[peers.rank] < max(steps):
        store.save(snapshot)
    return snapshot


def take_counts(job: JobContext, prepared: PreparedInputs, state: TrainingState) -> None:
    """Take over what the first rank has counted; stop if a rank would compute other bits.

    Raises:
        ConfigError: the ranks have cards of different kinds.
        CardsDisagree: they found different files, or restored different states.
    """
    if job.peers.size == 1:
        return
    counters = state.counters
    everybody: list[dict[str, Any]] = job.peers.gather(
        {
            "facts": {key: _sha256(value) for key, value in prepared.fingerprint.items()},
            "hardware": str(prepared.fingerprint["hardware"]),
            "state": [counters.step, digest(state.parameters)],
            "resumes": counters.resumes,
            "redone_steps": counters.redone_steps,
            "inexact_from": counters.inexact_from,
        }
    )
    first = everybody[0]
    for rank, other in enumerate(everybody):
        if other["facts"] != first["facts"]:
            keys = [key for key in first["facts"] if other["facts"].get(key) != first["facts"][key]]
            _refuse(rank, keys, other["hardware"], first["hardware"])
        if other["state"] != first["state"]:
            raise CardsDisagree(
                f"rank {rank} begins with the step and state {other['state']}, "
                f"rank 0 with {first['state']}; start again"
            )
    counters.resumes, counters.redone_steps = first["resumes"], first["redone_steps"]
    counters.inexact_from = first["inexact_from"]


def _refuse(rank: int, keys: list[str], hardware: str, first: str) -> None:
    """Say in what a rank differs from rank 0, and what to do about it."""
    problem = f"rank {rank} and rank 0 would compute other bits: they differ in {', '.join(keys)}"
    if "hardware" in keys:
        advice = "take a machine whose cards are all of one kind"
        raise ConfigError([f"{problem} ({hardware} and {first}); {advice}"])
    raise CardsDisagree(f"{problem}, which changed while they started; start again")


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
