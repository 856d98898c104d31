"""Ranks validate and sample a training together, to the bits and the decisions of one process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import Rig, outcome, rig, twin_of
from support.socket_ranks import Ended, all_values, on_ranks

from trainer.data.codec import Example
from trainer.data.examples import Examples
from trainer.errors import (
    Busy,
    DataError,
    DoesNotFit,
    NoSandbox,
    PeerLost,
    Preempted,
)
from trainer.group.peers import Peers
from trainer.group.rounds import on_all, on_first, share
from trainer.hub import Shards
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet

STEPS = 40
VALIDATED = {"validate_every": 1, "stop_after": 2, "lr": 0.3, "samples": 3}


def lay_out(directory: Path) -> Path:
    """Make a training in NF4 whose five held-out rows soon get worse; nothing is drawn by chance.

    The ranks of a test share the random numbers of its process.
    """
    directory.mkdir(parents=True)
    rows = tiny.make_rows(directory / "eval.jsonl", 9)
    lines = rows.read_text().splitlines()[4:]
    rows.write_text("\n".join(lines).replace("neutral", "positive") + "\n")
    return tiny.make_run(
        directory,
        rows=20,
        data={"eval": str(rows)},
        method={"kind": "qlora", "dropout": 0.0},
        train={"steps": STEPS, "batch_size": 4, "micro_batch": 2, **VALIDATED},
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return the training by one process, done."""
    torch.set_num_threads(1)
    made = rig(lay_out(tmp_path_factory.mktemp("alone") / "run"))
    made.train(until=STEPS)
    return made


def rigs(alone: Rig, directory: Path, size: int) -> list[Rig]:
    """Return the same training for each of some ranks, each in a directory of its own."""
    return [rig(twin_of(alone, directory / str(rank))) for rank in range(size)]


def join(made: Rig, peers: Peers) -> Rig:
    """Let a training validate and sample with the other ranks."""
    validation, samples = made.context.validation, made.context.samples
    assert validation is not None
    assert samples is not None
    made.context = replace(
        made.context,
        validation=replace(validation, peers=peers),
        samples=replace(samples, peers=peers, path=None if peers.rank else samples.path),
    )
    return made


def everything(made: Rig) -> tuple[Any, ...]:
    """Return all bits of a training: log, adapter, moments, the best, and the samples."""
    best = {k: v.numpy().tobytes() for k, v in made.state.best_adapter.items()}
    return (*outcome(made), best, made.state.best, made.state.samples)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_decide_as_one_process(size: int, alone: Rig, tmp_path: Path) -> None:
    """Losses, the best step, the end of the training and the answers are equal on every rank."""
    made = rigs(alone, tmp_path, size)

    def act(peers: Peers) -> tuple[Any, ...]:
        join(made[peers.rank], peers).train(until=STEPS)
        return everything(made[peers.rank])

    found = all_values(on_ranks(size, act))
    ended = alone.state.counters.step
    written = [one.run_dir / "samples.jsonl" for one in made]

    assert ended < STEPS
    assert alone.state.best.step == ended - 2
    assert found == [everything(alone)] * size
    assert written[0].read_bytes() == (alone.run_dir / "samples.jsonl").read_bytes()
    assert not any(one.exists() for one in written[1:])
    assert [one.messages for one in made[1:]] == [made[0].messages] * (size - 1)


class TooMuch:
    """An objective whose batch of two rows does not fit if it begins with a certain row."""

    def __init__(self, inner: Any, row: int) -> None:
        self._inner = inner
        self._row = row
        self._examples: Sequence[Example] = ()
        self.done: list[list[int]] = []

    def collate(self, examples: Sequence[Example]) -> Any:
        """Note the rows."""
        self._examples = examples
        return self._inner.collate(examples)

    def load(self, rows: Path | Shards) -> Examples:
        """Read rows as ever."""
        found: Examples = self._inner.load(rows)
        return found

    def loss(self, model: Any, batch: Any, kernels: KernelSet = NO_KERNELS) -> torch.Tensor:
        """Return the loss of rows, or find no memory for it."""
        rows = [item.row for item in self._examples]
        if len(rows) > 1 and rows[0] == self._row:
            raise MemoryError
        self.done.append(rows)
        loss: torch.Tensor = self._inner.loss(model, batch, kernels)
        return loss


@pytest.mark.parametrize("place", [0, 2, 4])
def test_memory_that_runs_out_on_one_rank_cuts_the_batches_of_all(
    place: int, alone: Rig, tmp_path: Path
) -> None:
    """The rows go through the model in the batches of one process, so the loss has its bits."""
    made = [rig(twin_of(alone, tmp_path / "one")), *rigs(alone, tmp_path, 3)]
    validation = made[0].context.validation
    assert validation is not None
    rows = sorted(validation.examples, key=lambda item: -len(item.input_ids) - len(item.labels))
    row = rows[place].row
    batches: list[list[list[int]]] = []

    def measure(one: Rig, peers: Peers | None = None) -> str:
        if peers is not None:
            join(one, peers)
        found = one.context.validation
        assert found is not None
        objective = TooMuch(found.objective, row)
        loss = replace(found, objective=objective).run(one.state)["validation_loss"]
        batches.append(objective.done)
        return float(loss).hex()

    expected, [by_one] = measure(made[0]), list(batches)
    batches.clear()
    losses = all_values(on_ranks(3, lambda peers: measure(made[1 + peers.rank], peers)))
    together = {tuple(rows) for of_rank in batches for rows in of_rank}

    assert losses == [expected] * 3
    assert {tuple(rows) for rows in by_one} <= together


def stop_in_validation(made: Rig, action: Any) -> None:
    """Do something in the first pass of a validation."""
    original = made.context.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not made.context.model.training:
            action()
        return original(*args, **kwargs)

    made.context.model.forward = forward


def test_a_notice_to_one_rank_ends_the_validation_of_all(alone: Rig, tmp_path: Path) -> None:
    """Nothing is recorded on any of them, and the next start validates the state again."""
    made = rigs(alone, tmp_path, 3)
    barrier = threading.Barrier(3)

    def act(peers: Peers) -> float:
        one = join(made[peers.rank], peers)
        one.context = replace(one.context, samples=None)
        if peers.rank == 1:
            flag = one.context.flag
            stop_in_validation(one, lambda: flag.set(seconds_left=30, reason="test"))
        barrier.wait()
        validation = one.context.validation
        assert validation is not None
        small = replace(validation, examples=[*validation.examples] * 3)  # more than one round
        return float(small.run(one.state)["validation_loss"])

    ended: list[Ended[float]] = on_ranks(3, act)

    assert [type(one.error) for one in ended] == [Preempted] * 3
    assert len({len(one.peers.gathered) for one in ended}) == 1
    assert [one.state.best.loss for one in made] == [None] * 3


def test_samples_that_fail_on_one_rank_are_missing_on_all(alone: Rig, tmp_path: Path) -> None:
    """All say the same of it, and go on with the next thing together."""
    made = rigs(alone, tmp_path, 2)

    def act(peers: Peers) -> list[Any]:
        one = join(made[peers.rank], peers)

        def fail() -> None:
            raise ValueError("a broken answer")

        if peers.rank == 0:
            stop_in_validation(one, fail)
        samples = one.context.samples
        assert samples is not None
        samples.run(one.state)
        return [one.messages[-1], peers.gather("next")]

    found = all_values(on_ranks(2, act))

    assert found == [["no samples after step 0: ValueError: a broken answer", ["next"] * 2]] * 2


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (Preempted(), Preempted()),
        (DataError(["row 1", "row 2"]), DataError(["row 1", "row 2"])),
        (DoesNotFit("too long"), DoesNotFit("too long")),
        (NoSandbox(["a", "b"]), NoSandbox(["a", "b"])),
        (KeyError("name"), KeyError("name")),
        (IsADirectoryError(21, "a folder"), OSError("[Errno 21] a folder")),
        (UnicodeError("odd"), UnicodeError("odd")),
        (StopAsyncIteration("odd"), RuntimeError("StopAsyncIteration: odd")),
        (Busy("taken"), RuntimeError("Busy: taken")),
    ],
    ids=lambda one: type(one).__name__,
)
def test_an_error_of_one_rank_is_raised_on_all(error: Exception, elsewhere: Exception) -> None:
    """Of two ranks that met one, that of the lower one is raised; each keeps what it did before."""

    def act(peers: Peers) -> tuple[str, str, list[list[Any]], int]:
        def work() -> Any:
            yield peers.rank
            if peers.rank:
                raise error if peers.rank == 1 else ValueError("later")

        found = share(peers, work())
        with pytest.raises(type(found.failure or error)):
            found.require()
        on_all(peers, lambda: None)
        return type(found.failure).__name__, str(found.failure), found.done, peers.rank

    failures = all_values(on_ranks(3, act))

    for kind, words, done, rank in failures:
        expected = error if rank == 1 else elsewhere
        assert (kind, words) == (type(expected).__name__, str(expected))
        assert done == [[0], [1], [2]]


def test_what_the_first_rank_does_reaches_all() -> None:
    """It acts alone; its error is that of all, and a rank that is lost is no such error."""

    def act(peers: Peers) -> Any:
        return on_first(peers, lambda: {"rank": peers.rank})

    def fail(peers: Peers) -> Any:
        nothing: dict[int, int] = {}
        return on_first(peers, lambda: nothing[peers.rank])

    def leave(peers: Peers) -> Any:
        return None if peers.rank == 2 else share(peers, iter([1])).require()

    lost = on_ranks(3, leave)

    assert all_values(on_ranks(3, act)) == [{"rank": 0}] * 3
    assert [type(one.error) for one in on_ranks(3, fail)] == [KeyError] * 3
    assert [type(one.error) for one in lost] == [PeerLost, PeerLost, type(None)]
