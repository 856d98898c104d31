"""Log, status, curves and the rhythm of saves tell the truth and never stop a training."""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import snapshot
from support.faulty_disk import FullDisk
from support.runs import wait_until

from trainer.atomic import RealDisk
from trainer.config import CheckpointTable, EvictionBand
from trainer.rundir.status import HeartbeatWriter, MetricsLog, Phase, count_steps, parse_log
from trainer.saving.async_saver import AsyncSaver
from trainer.saving.checkpoint import Store
from trainer.saving.checkpointer import Checkpointer
from trainer.saving.interval import INTERVAL_S_MAX, INTERVAL_S_MIN, choose_interval
from trainer.saving.manifest import steps_present
from trainer.saving.state import Counters
from trainer.tracking.tensorboard import TensorBoard
from trainer.tracking.tracker import NoTracker, curves, make_tracker

RECORD = {"step": 1, "loss": 2.5, "lr": 0.1, "grad_norm": None, "tokens": 10, "seconds": 0.5}


class FakeState:
    """Counts steps and hands out small snapshots, as the real state does."""

    def __init__(self, directory: Path) -> None:
        self.counters = Counters()
        self.log = MetricsLog(directory / "metrics.jsonl")

    def snapshot(self, _fingerprint: object) -> Any:
        """Return a snapshot of the present step."""
        return snapshot(self.counters.step)


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def checkpointer(
    directory: Path, table: CheckpointTable, *, disk: Any = None, clock: Callable[[], float]
) -> tuple[Checkpointer, FakeState, list[str]]:
    """Return a checkpointer over a fake state and a real store."""
    messages: list[str] = []
    state = FakeState(directory)
    store = Store(directory / "checkpoints", keep=2, disk=disk or RealDisk())
    made = Checkpointer(
        state=state,  # type: ignore[arg-type] # as much of a state as a checkpointer needs
        saver=AsyncSaver(store, clock=clock),
        table=table,
        band=None,
        fingerprint={},
        heartbeat=HeartbeatWriter(
            directory / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
        ),
        tracker=TensorBoard(directory / "tb", steps_done=0, wall_s=lambda: 0.0),
        clock=clock,
        on_message=messages.append,
    )
    return made, state, messages


class BusySaver:
    """A saver that is at work until somebody says otherwise, and notes what it starts."""

    def __init__(self) -> None:
        self.busy = True
        self.started: list[int] = []

    def start(self, snapshot: Any) -> None:
        """Note the step of a save."""
        self.started.append(snapshot.step)

    def collect(self, *, wait: bool) -> None:
        """Have no result."""
        del wait


def advance(made: Checkpointer, state: FakeState, *, collect: bool = True) -> None:
    """Do one step, and wait for a save that it started."""
    state.counters.step += 1
    made.after_step({**RECORD, "step": state.counters.step})
    if collect:
        made._note_result(made.saver.collect(wait=True))


def test_saves_come_every_so_many_steps(tmp_path: Path) -> None:
    """`every: 3` saves after steps 3 and 6 and 9, and status names the newest durable one."""
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=3), clock=Clock())
    seen = []
    for _ in range(10):
        advance(made, state)
        seen.append(made.heartbeat.status.checkpoint_step)

    assert seen == [None, None, 3, 3, 3, 6, 6, 6, 9, 9]


def test_a_requested_save_is_made_once(tmp_path: Path) -> None:
    """One save begins after the request, however young the last one is, and no second one."""
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=100), clock=Clock())
    made.save_requested = lambda: state.counters.step >= 3
    seen = []
    for _ in range(6):
        advance(made, state)
        seen.append(made.heartbeat.status.checkpoint_step)

    assert seen == [None, None, 3, 3, 3, 3]


def test_a_requested_save_waits_for_one_under_way(tmp_path: Path) -> None:
    """A save that began before the request does not count for it."""
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=100), clock=Clock())
    made.saver = busy = BusySaver()  # type: ignore[assignment] # as much as is used
    made.save_requested = lambda: True
    advance(made, state, collect=False)
    busy.busy = False
    advance(made, state, collect=False)
    advance(made, state, collect=False)

    assert busy.started == [2]


def test_saves_come_every_so_many_seconds(tmp_path: Path) -> None:
    """`every: 90s` saves at the first step that ends 90 s after the save before."""
    clock = Clock()
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every="90s"), clock=clock)
    saved = []
    for _ in range(12):
        clock.now_s += 20
        advance(made, state)
        saved.append(made.heartbeat.status.checkpoint_step)

    assert saved == [None, None, None, None, 5, 5, 5, 5, 5, 10, 10, 10]


def test_a_smaller_micro_batch_is_saved_at_once(tmp_path: Path) -> None:
    """After memory ran out, the way batches are cut is durable with the very step it began at."""
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=100), clock=Clock())
    advance(made, state)
    state.counters.micro_batch -= 1
    for _ in range(3):
        advance(made, state)

    assert steps_present(tmp_path / "checkpoints") == [2]


def test_the_loss_of_exactness_in_a_step_is_in_the_status_at_once(tmp_path: Path) -> None:
    """What makes the bits of a step differ is told with that step, not only after a resume."""
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=9), clock=Clock())
    advance(made, state)
    assert made.heartbeat.status.exact
    state.counters.inexact_from = 2
    advance(made, state)
    assert (made.heartbeat.status.exact, made.heartbeat.status.inexact_from) == (False, 2)


def test_a_clock_that_stands_or_leaps_saves_neither_always_nor_never(tmp_path: Path) -> None:
    """A leap of a day causes one save, not a save per step; a still clock causes none."""
    clock = Clock()
    made, state, _ = checkpointer(tmp_path, CheckpointTable(every="1min"), clock=clock)
    for _ in range(3):
        advance(made, state)
    clock.now_s += 86_400
    for _ in range(3):
        advance(made, state)

    assert steps_present(tmp_path / "checkpoints") == [4]


def test_a_full_disk_is_reported_and_training_goes_on(tmp_path: Path) -> None:
    """A save without room leaves a message in the status; the next one with room clears it."""
    disk = FullDisk(10**9)
    made, state, messages = checkpointer(
        tmp_path, CheckpointTable(every=1), disk=disk, clock=Clock()
    )
    advance(made, state)
    disk.room = 100
    advance(made, state)
    message = made.heartbeat.status.message

    assert message is not None
    assert "could not be saved: No space left on device" in message
    assert "the newest whole one is step 1" in message
    assert message in messages
    disk.room = 10**9
    advance(made, state)
    assert (made.heartbeat.status.message, made.heartbeat.status.checkpoint_step) == (None, 3)


def test_never_two_saves_at_once(tmp_path: Path) -> None:
    """While a save is slow, steps go on, no second save starts, and a later one catches up."""
    gate, running = threading.Event(), []

    class SlowDisk(RealDisk):
        def make_directory(self, path: Path) -> None:
            """Wait for the gate."""
            running.append(path.name)
            gate.wait(600)  # until it is opened below
            super().make_directory(path)

    made, state, _ = checkpointer(
        tmp_path, CheckpointTable(every=1), disk=SlowDisk(), clock=Clock()
    )
    for _ in range(4):
        advance(made, state, collect=False)
    wait_until(lambda: bool(running))

    assert running == [".step-00000001.partial"]
    gate.set()
    assert made.save_now()
    assert running == [".step-00000001.partial", ".step-00000004.partial"]
    assert steps_present(tmp_path / "checkpoints") == [4, 1]


def test_the_log_tells_steps_at_most_every_half_minute_and_the_last(tmp_path: Path) -> None:
    """The first step, one per 30 s and the last are said, each once, with speed and time left."""
    clock = Clock()
    made, state, messages = checkpointer(tmp_path, CheckpointTable(every=100), clock=clock)
    made.heartbeat.update(steps=12)
    for _ in range(8):
        clock.now_s += 12
        advance(made, state)
    made.save_now()
    made.save_now()

    assert [line for line in messages if line.startswith("step")] == [
        "step 1/12: loss 2.5000, lr 0.1, 20 tokens/s, 6 s left",
        "step 4/12: loss 2.5000, lr 0.1, 20 tokens/s, 4 s left",
        "step 7/12: loss 2.5000, lr 0.1, 20 tokens/s, 2 s left",
        "step 8/12: loss 2.5000, lr 0.1, 20 tokens/s, 2 s left",
    ]


def test_a_step_without_a_finite_loss_is_reported_too(tmp_path: Path) -> None:
    """Where the loss is no number and the end is unknown, the line says just that."""
    made, state, messages = checkpointer(tmp_path, CheckpointTable(every=100), clock=Clock())
    state.counters.step += 1
    made.after_step({**RECORD, "loss": None})

    assert messages[-1] == "step 1/?: loss not finite, lr 0.1, 20 tokens/s"


def test_a_bug_in_a_save_is_not_swallowed(tmp_path: Path) -> None:
    """An error that is no disk's reaches the loop's thread."""

    class Broken(RealDisk):
        def make_directory(self, path: Path) -> None:
            """Fail as no disk does."""
            raise ZeroDivisionError(path)

    made, state, _ = checkpointer(tmp_path, CheckpointTable(every=1), disk=Broken(), clock=Clock())
    with pytest.raises(RuntimeError, match="a bug of ours"):
        advance(made, state)


def test_nothing_is_saved_twice(tmp_path: Path) -> None:
    """Asked to save a step that is durable already, the checkpointer has nothing to do."""
    made, state, messages = checkpointer(tmp_path, CheckpointTable(every=1), clock=Clock())
    advance(made, state)
    before = len(messages)

    assert made.save_now()
    assert len(messages) == before


@pytest.mark.parametrize(
    ("band", "save_s", "minutes"),
    [
        (EvictionBand.UP_TO_5, 1.0, 6.2),  # sqrt(2 * 1 s * 19.5 h)
        (EvictionBand.UP_TO_5, 5.0, 14.0),
        (EvictionBand.UP_TO_20, 5.0, 6.7),
        (EvictionBand.OVER_20, 0.1, 5.0),  # the lower limit
        (EvictionBand.UP_TO_5, 60.0, 20.0),  # the upper limit
        (None, 5.0, 5.9),  # unknown counts as the worst band
    ],
)
def test_the_automatic_interval_is_young_and_daly_s(
    band: EvictionBand | None, save_s: float, minutes: float
) -> None:
    """The interval is sqrt(2 C M) of the save time and the band, within 5 to 20 minutes."""
    interval = choose_interval(CheckpointTable(), band=band, save_s=save_s)

    assert interval.interval_s is not None
    assert round(interval.interval_s / 60, 1) == minutes
    assert f"{save_s:.2f} s" in interval.reason


@settings(deadline=None)
@given(band=st.sampled_from([None, *EvictionBand]), save_s=st.floats(0, 1e6))
def test_the_automatic_interval_keeps_its_limits(band: EvictionBand | None, save_s: float) -> None:
    """However long a save takes, the interval stays within its limits."""
    interval_s = choose_interval(CheckpointTable(), band=band, save_s=save_s).interval_s

    assert interval_s is not None
    assert INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX


def test_before_the_first_save_the_shortest_interval_counts() -> None:
    """Nothing measured yet: five minutes, and the reason says so."""
    interval = choose_interval(CheckpointTable(), band=None, save_s=None)

    assert interval.interval_s == INTERVAL_S_MIN
    assert "until the first save has been timed" in interval.reason


def test_the_band_of_the_config_counts_unless_the_command_knows_better() -> None:
    """`checkpoint.eviction_band` is used, and the command line overrides it."""
    table = CheckpointTable(eviction_band=EvictionBand.UP_TO_5)
    own = choose_interval(table, band=None, save_s=5.0)
    output = choose_interval(table, band=EvictionBand.UP_TO_20, save_s=5.0)

    assert "band 0-5 %/h" in own.reason
    assert "band 15-20 %/h" in output.reason


def test_the_heartbeat_beats_while_nobody_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any progress `updated_at` goes on, and the phase stays what it was."""
    monkeypatch.setattr("trainer.rundir.status.HEARTBEAT_S", 0.01)
    path = tmp_path / "status.json"
    moments = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=s) for s in range(10**6))
    with HeartbeatWriter(path, disk=RealDisk(), now=lambda: next(moments)) as heartbeat:
        heartbeat.update(phase=Phase.LOADING)
        first = json.loads(path.read_text())
        wait_until(lambda: json.loads(path.read_text())["updated_at"] != first["updated_at"])
        later = json.loads(path.read_text())

    assert later["updated_at"] > first["updated_at"]
    assert later["phase"] == "loading"
    assert json.loads(path.read_text())["version"] == 1


def test_the_status_is_never_half_written(tmp_path: Path) -> None:
    """A reader that looks all the time always sees a whole document."""
    path = tmp_path / "status.json"
    with HeartbeatWriter(path, disk=RealDisk(), now=lambda: datetime.now(UTC)) as heartbeat:
        for step in range(200):
            heartbeat.update(step=step, message="x" * (step * 20), at_once=True)
            assert json.loads(path.read_text())["version"] == 1

    assert json.loads(path.read_text())["step"] == 199


def test_a_full_disk_does_not_stop_the_heartbeat(tmp_path: Path) -> None:
    """Without room the old status stays, whole, and the next beat with room tells the new one."""
    disk = FullDisk(10**6)
    with HeartbeatWriter(
        tmp_path / "status.json", disk=disk, now=lambda: datetime.now(UTC)
    ) as heartbeat:
        disk.room = 0
        heartbeat.update(step=7)
        heartbeat._write()
        assert json.loads((tmp_path / "status.json").read_text())["step"] is None
        disk.room = 10**6

    assert json.loads((tmp_path / "status.json").read_text())["step"] == 7


def test_counts_of_the_process_before_are_read_back(tmp_path: Path) -> None:
    """A new process knows how often the run was resumed, and survives a status that is garbage."""
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"resumes": 3, "redone_steps": 17, "phase": "nonsense"}))
    counts = HeartbeatWriter(path, disk=RealDisk(), now=lambda: datetime.now(UTC)).previous
    path.write_text("{")
    none = HeartbeatWriter(path, disk=RealDisk(), now=lambda: datetime.now(UTC)).previous

    assert (counts.resumes, counts.redone_steps, counts.phase) == (3, 17, Phase.LOADING)
    assert (none.resumes, none.redone_steps) == (0, 0)


def test_the_log_loses_no_line_to_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that found no room are in the file as soon as there is room, each once, in order."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    real = Path.open

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        file = real(self, *arguments, **named)
        file.write(b'{"st')  # half a line gets through
        file.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    log.append({"step": 2})
    log.append({"step": 3})
    monkeypatch.undo()
    log.append({"step": 4})

    assert parse_log((tmp_path / "metrics.jsonl").read_bytes()) == [
        b'{"step": 1}\n', b'{"step": 2}\n', b'{"step": 3}\n', b'{"step": 4}\n',
    ]  # fmt: skip


def test_a_resumed_log_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    """Lines beyond the checkpoint vanish with the first step that is done again."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert count_steps(path) == 3
    log = MetricsLog(path, [b'{"step": 1}\n'])
    log.append({"step": 2})

    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_curves_are_read_by_tensorboard(tmp_path: Path) -> None:
    """TensorBoard's own reader finds every point, and a resumed run's points replace the old."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wall = iter(range(1000, 2000))
    first = TensorBoard(tmp_path, steps_done=0, wall_s=lambda: float(next(wall)))
    for step in (1, 2, 3, 200):
        first.log(step, curves({**RECORD, "loss": step / 8}))
    second = TensorBoard(tmp_path, steps_done=2, wall_s=lambda: float(next(wall)))
    second.log(3, curves({**RECORD, "loss": 7.0}))
    found = EventAccumulator(str(tmp_path)).Reload()

    assert set(found.Tags()["scalars"]) == {"loss", "lr", "tokens"}
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.125), (2, 0.25), (3, 7.0)]


def test_curves_lost_to_a_full_disk_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no room is not shown; what comes when there is room again is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def full(*_arguments: Any, **_named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TensorBoard(tmp_path, steps_done=0, wall_s=lambda: 1.0)
    monkeypatch.setattr(Path, "open", full)
    writer.log(1, {"loss": 1.0})
    monkeypatch.undo()
    writer.log(2, {"loss": 0.5})
    writer.close()

    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(2, 0.5)]


@pytest.mark.parametrize("broken", [ImportError("No module named x"), TypeError("Descriptors")])
def test_without_tensorboard_there_are_no_curves_and_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    """A package that is not there, or cannot be loaded, costs a message."""

    class Finder:
        def find_spec(self, name: str, *_more: object) -> None:
            if name.startswith("trainer.tracking.tensorboard"):
                raise broken

    messages: list[str] = []
    monkeypatch.delitem(sys.modules, "trainer.tracking.tensorboard")
    monkeypatch.delattr("trainer.tracking.tensorboard")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    made = make_tracker(tmp_path, steps_done=0, wall_s=lambda: 1.0, on_message=messages.append)
    made.log(1, {"loss": 1.0})
    made.close()

    assert isinstance(made, NoTracker)
    assert messages == [f"no curves in tb/: {broken}; metrics.jsonl has every step"]
    assert not (tmp_path / "tb").exists()
