"""Numbers that are read a step late are those of a loop that waits, and every snapshot is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.rig import FACTS, Logger, Rig, outcome, restored, rig, twin_of

from trainer.data.codec import Example
from trainer.device import device_queue
from trainer.device.device_queue import (
    LaunchLimit,
    copy_to_host,
    host_sync_refused,
    into_pinned,
    layout,
    views_of,
)
from trainer.errors import Diverged, Preempted
from trainer.saving.state import bit_sums, digest, hash_sums
from trainer.training import loop
from trainer.training.loop import train

STEPS = 6
TRAIN = {"steps": STEPS, "batch_size": 4, "micro_batch": 2}
RUNS: dict[str, dict[str, Any]] = {
    "dropout": {"method": {"dropout": 0.1}, "train": TRAIN},
    "validated": {"method": {}, "train": {**TRAIN, "validate_every": 4, "keep_best": True}},
    "nola": {"method": {"kind": "nola", "r": 8}, "train": TRAIN},
    "dylora": {"method": {"kind": "dylora"}, "train": TRAIN},
}


def late(made: Rig) -> Rig:
    """Let the numbers of a step be read behind the passes of the next one."""
    made.context = replace(made.context, reads_late=True)
    return made


@dataclass
class Saver(Logger):
    """Saves the state behind every step, and notes how many passes were launched by then."""

    made: Rig | None = None
    passes: list[int] = field(default_factory=list)
    passes_at: list[int] = field(default_factory=list)
    states: dict[int, Any] = field(default_factory=dict)

    def after_step(self, record: dict[str, Any]) -> None:
        """Log the step and keep what a save would write."""
        super().after_step(record)
        self.passes_at.append(len(self.passes))
        assert self.made is not None
        if record["step"] in {2, 3}:
            self.made.store.save(self.made.state.snapshot(FACTS))
        self.states[record["step"]] = outcome(self.made)[1:]


def watched(made: Rig) -> tuple[Rig, Saver]:
    """Return the rig with a count of its training passes, and its callback."""
    saver = Saver(made.state, made=made)
    made.context.model.register_forward_pre_hook(
        lambda model, _arguments: saver.passes.append(1) if model.training else None
    )
    return made, saver


@pytest.fixture(scope="module", params=sorted(RUNS))
def waiting(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, Saver]:
    """A training that reads the numbers of each step at once, with its state behind every step."""
    directory = tmp_path_factory.mktemp("waiting")
    settings = dict(RUNS[request.param])
    if request.param == "validated":
        settings["data"] = {"eval": str(directory / "train.jsonl")}
    made, saver = watched(rig(tiny.make_run(directory, rows=20, **settings)))
    train(made.context, made.state, saver, until=STEPS)
    return made, saver


def test_the_same_records_come_in_the_same_order(
    waiting: tuple[Rig, Saver], tmp_path: Path
) -> None:
    """Log, adapter, moments and counters are equal, and so is the state behind every record."""
    expected, before = waiting
    made, saver = watched(late(rig(twin_of(expected, tmp_path))))
    train(made.context, made.state, saver, until=STEPS)

    def without_times(made: Rig) -> Any:
        return replace(made.state.counters, train_s=0, usd=0)

    assert outcome(made) == outcome(expected)
    assert saver.states == before.states
    assert without_times(made) == without_times(expected)
    assert made.state.best == expected.state.best


def test_numbers_are_read_behind_the_passes_of_the_next_step(
    waiting: tuple[Rig, Saver], tmp_path: Path
) -> None:
    """Two passes of the next step are launched by then, unless the state itself is awaited."""
    expected, before = waiting
    made, saver = watched(late(rig(twin_of(expected, tmp_path))))
    train(made.context, made.state, saver, until=STEPS)
    validated = expected.context.validation is not None

    assert before.passes_at == [2, 4, 6, 8, 10, 12]
    assert saver.passes_at == [4, 6, 8, 8 if validated else 10, 12, 12]


def test_a_run_goes_on_from_a_snapshot_taken_behind_launched_passes(
    waiting: tuple[Rig, Saver], tmp_path: Path
) -> None:
    """What was saved while the next step was under way leads to the same end."""
    expected, _ = waiting
    made, saver = watched(late(rig(twin_of(expected, tmp_path))))
    saver.flag, saver.stop_after = made.context.flag, 4
    with pytest.raises(Preempted):
        train(made.context, made.state, saver, until=STEPS)
    again = late(restored(made.run_dir))

    assert again.state.counters.step == 3
    again.train(until=STEPS)
    assert outcome(again) == outcome(expected)


def test_a_notice_finds_every_step_that_is_done_in_the_log(
    waiting: tuple[Rig, Saver], tmp_path: Path
) -> None:
    """Whenever a notice comes, the state that is left can be saved, and goes on to the same end."""
    expected, _ = waiting
    notices = [(60, 5), (0, 6)]
    if expected.context.validation is not None:
        notices += [(60, 7), (0, 8)]  # in the step that is validated
    for seconds_left, at in notices:
        made = late(rig(twin_of(expected, tmp_path / f"{at}")))
        notice_in_pass(made, at, seconds_left=seconds_left)
        with pytest.raises(Preempted):
            made.train(until=STEPS)
        made.save()
        counters = made.state.counters

        assert len(tiny.losses(made.run_dir)) == counters.step
        assert counters.step == (at + 1) // 2 - (seconds_left == 0 and at % 2 == 1)
        again = late(restored(made.run_dir))
        again.train(until=STEPS)
        assert outcome(again) == outcome(expected)


def notice_in_pass(made: Rig, number: int, *, seconds_left: float) -> None:
    """Raise the flag in a pass of the training, counted from 1."""
    passes: list[int] = []

    def count(model: Any, _arguments: Any) -> None:
        passes.extend([1] * model.training)
        if model.training and len(passes) == number:
            made.context.flag.set(seconds_left=seconds_left, reason="test")

    made.context.model.register_forward_pre_hook(count)


def test_a_step_given_up_leaves_the_one_before_it_whole(tmp_path: Path) -> None:
    """A notice without time left in the first of two passes leaves the log of the steps done."""
    made = late(rig(tiny.make_run(tmp_path, rows=20, train=TRAIN)))
    notice_in_pass(made, 5, seconds_left=0)
    with pytest.raises(Preempted):
        made.train(until=STEPS)

    assert made.state.counters.step == 2
    assert [record["step"] for record in tiny.losses(made.run_dir)] == [1, 2]
    assert all(one.grad is None for one in made.state.parameters.values())


def test_memory_that_runs_out_in_a_late_loop_is_saved_as_in_a_waiting_one(tmp_path: Path) -> None:
    """The step is done again with fewer rows at a time, and the record before it is not lost."""
    ends = []
    for name in ("waiting", "late"):
        made = rig(tiny.make_run(tmp_path / name, rows=20, train=TRAIN))
        made = late(made) if name == "late" else made
        run_out(made, from_pass=5)
        made.train(until=STEPS)
        ends.append((outcome(made), made.state.counters.micro_batch))

    assert ends[0] == ends[1]
    assert ends[0][1] == 1


def run_out(made: Rig, *, from_pass: int) -> None:
    """Let passes of more than one row fail from a certain one on."""
    passes: list[int] = []

    def forward(_model: Any, _arguments: Any, given: dict[str, Any]) -> None:
        passes.append(1)
        if len(passes) >= from_pass and len(given["input_ids"]) > 1:
            raise torch.OutOfMemoryError("test")

    made.context.model.register_forward_pre_hook(forward, with_kwargs=True)


def fused(made: Rig) -> Rig:
    """Give the training the optimizer that it has on a card."""
    parameters = [*made.state.parameters.values()]
    made.state.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    return made


class Overflowing:
    """An objective whose loss is infinite in some of its calls, counted from 0."""

    def __init__(self, inner: Any, calls: Sequence[int]) -> None:
        self._inner = inner
        self._calls = calls
        self._done = 0

    def collate(self, examples: Sequence[Example]) -> Any:
        """Collate as the one inside does."""
        return self._inner.collate(examples)

    def loss(self, model: Any, batch: Any, kernels: Any) -> torch.Tensor:
        """Return the loss, infinite where that was asked for."""
        found: torch.Tensor = self._inner.loss(model, batch, kernels)
        self._done += 1
        return found * float("inf") if self._done - 1 in self._calls else found


@pytest.mark.parametrize("scaled", [False, True])
def test_a_device_leaves_out_the_steps_that_the_host_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, scaled: bool
) -> None:
    """Without a finite gradient nothing is updated, whoever decides; the loss scale learns."""
    ends = []
    for decides in ("host", "device"):
        made = fused(rig(tiny.make_run(tmp_path / decides, rows=20, train=TRAIN)))
        if scaled:
            made.state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if decides == "host":
            monkeypatch.setattr(loop, "decides_on_device", lambda _optimizer: False)
        else:
            monkeypatch.undo()
            made = late(made)
        objective: Any = Overflowing(made.context.objective, (0, 5))
        made.context = replace(made.context, objective=objective)
        made.train(until=STEPS)
        scale = made.state.scaler.state_dict() if made.state.scaler else None
        ends.append((outcome(made), made.state.counters.skipped, scale))

    assert ends[0] == ends[1]
    assert ends[0][1] == 2
    assert [record["skipped"] for record in ends[0][0][0]] == [True, False, True] + [False] * 3


def test_steps_without_a_finite_gradient_end_a_late_loop_too(tmp_path: Path) -> None:
    """After the twentieth in a row the training ends, with all of them in the log."""
    train = {**TRAIN, "steps": 30, "micro_batch": 4}
    made = late(fused(rig(tiny.make_run(tmp_path, rows=20, train=train))))
    objective: Any = Overflowing(made.context.objective, range(100))
    made.context = replace(made.context, objective=objective)
    with pytest.raises(Diverged, match="up to step 20"):
        made.train(until=30)

    assert len(tiny.losses(made.run_dir)) == 20


@dataclass
class Place:
    """A place in the queue of a device, with a note of when it is waited for."""

    number: int
    waited: list[int]

    def synchronize(self) -> None:
        """Note it."""
        self.waited.append(self.number)


def test_the_host_is_one_pass_ahead_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a pass is launched, the last but one is done; a drain waits for all."""
    waited: list[int] = []
    numbers = iter(range(10))
    monkeypatch.setattr(device_queue, "record_event", lambda _device: Place(next(numbers), waited))
    limit, seen = LaunchLimit(), []
    for _ in range(4):
        limit.throttle()
        seen.append([*waited])
        limit.launched(torch.device("cpu"))
    limit.synchronize()

    assert seen == [[], [], [0], [0, 1]]
    assert waited == [0, 1, 2, 3]


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors of several types and shapes, some without elements or dimensions."""
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
        "sums": torch.arange(9),
    }


def test_parts_of_one_buffer_hold_the_tensors() -> None:
    """Each part begins at a multiple of 64 bytes, overlaps none, and has values, type and shape."""
    given = tensors()
    copies = into_pinned(given, lambda size: torch.full((size,), 255, dtype=torch.uint8))
    places, size = layout(given)
    spans = sorted((places[name], places[name] + one.nbytes) for name, one in given.items())

    assert {name: (one.dtype, one.shape) for name, one in copies.items()} == {
        name: (one.dtype, one.shape) for name, one in given.items()
    }
    assert all(torch.equal(copies[name], given[name]) for name in given)
    assert all(begin % 64 == 0 for begin, _ in spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert max(end for _, end in spans) <= size
    assert views_of(torch.empty(size, dtype=torch.uint8), given, places).keys() == given.keys()


def test_a_host_without_memory_to_pin_is_no_error() -> None:
    """Then nothing is launched, and the caller copies in the plain way; other errors are raised."""

    def fail(text: str) -> Any:
        def allocate(_size: int) -> torch.Tensor:
            raise RuntimeError(text)

        return allocate

    assert into_pinned(tensors(), fail("CUDA error: out of memory")) == {}
    with pytest.raises(RuntimeError, match="launch failure"):
        into_pinned(tensors(), fail("CUDA error: unspecified launch failure"))


def test_a_copy_does_not_change_with_its_source() -> None:
    """What was copied stays, whatever the training writes into the tensors then."""
    given = tensors()
    before = {name: one.clone() for name, one in given.items()}
    copy = copy_to_host(given, torch.device("cpu"))
    for one in given.values():
        one.zero_()
    copy.synchronize()

    assert all(torch.equal(copy.tensors[name], before[name]) for name in before)


def test_the_digest_does_not_depend_on_the_order_of_sums() -> None:
    """Sums that come shape by shape, as on a card, are hashed in the order of the parameters."""
    given = {str(at): torch.randn(2 + at % 3, 4) for at in range(9)}
    sums, order = bit_sums(given)
    turned = [*reversed(range(len(order)))]

    assert hash_sums(sums[turned], [order[at] for at in turned]) == digest(given)
    given["4"].view(torch.int32)[1, 2] ^= 1
    assert hash_sums(sums, order) != digest(given)


def test_waiting_for_a_card_is_refused_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait raises while inside; afterwards it does what it did before, even after an error."""
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with host_sync_refused(torch.device("cpu")), host_sync_refused(None):
        assert modes == []
    with pytest.raises(ValueError, match="inside"), host_sync_refused(torch.device("cuda")):
        raise ValueError("inside")

    assert modes == ["error", 0]


@dataclass
class CardEvent:
    """What torch's event of a card does, with a clock of its own in milliseconds."""

    clock: list[float]
    at_ms: float = 0.0
    waits: int = 0

    def record(self, _stream: object) -> None:
        """Take the time."""
        self.at_ms = self.clock[0]

    def synchronize(self) -> None:
        """Count it."""
        self.waits += 1

    def elapsed_time(self, later: CardEvent) -> float:
        """Return milliseconds until another event."""
        return later.at_ms - self.at_ms


def test_time_on_a_card_is_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two events lie the card's milliseconds, as seconds, read once it is there."""
    clock, made = [0.0], []

    def event(**_settings: bool) -> CardEvent:
        made.append(CardEvent(clock))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: None)
    card = torch.device("cuda")
    began = device_queue.record_event(card)
    clock[0] = 1500.0
    ended = device_queue.record_event(card)

    assert ended.seconds_since(began) == pytest.approx(1.5)
    assert [one.waits for one in made] == [0, 1]
