"""What ranks do together around the steps: who writes, who goes first, and that all begin alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support import tiny

from trainer.atomic import NoDisk, RealDisk, replace_file
from trainer.config import TrainerConfig
from trainer.device.determinism import set_threads
from trainer.errors import CardsDisagree, ConfigError
from trainer.estimate.micro_batch import choose_micro_batch
from trainer.estimate.share import describe_split
from trainer.group.alone import ALONE
from trainer.group.launch import Ended, RankPlace
from trainer.group.order import Turn, rank_0_first
from trainer.group.peers import Peers
from trainer.group.rank_exit import RankEnd
from trainer.job.context import JobContext, JobOptions
from trainer.job.job import place_of, writers_of
from trainer.job.missing import open_status
from trainer.job.on_cards import rank_arguments, report_failure
from trainer.job.same_start import find_newest, take_counts
from trainer.job.writers import EVERYTHING, NOTHING
from trainer.rundir.status import MetricsLog, Phase, write_failure
from trainer.saving.checkpoint import Store
from trainer.saving.manifest import steps_present
from trainer.saving.replica import LockedStore, ReplicaCheckpointer, saving_lock
from trainer.saving.state import TrainingState
from trainer.secret import Secret
from trainer.tracking.tracker import NoTracker

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


class InThreads:
    """Ranks that are threads of one process; they only gather."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def rank(self, number: int) -> Peers:
        """The ranks as one of them sees them."""
        return cast("Peers", SimpleNamespace(
            rank=number, size=self.size, local_rank=number, local_size=self.size,
            gather=lambda value: self._gather(number, value),
        ))  # fmt: skip

    def _gather(self, number: int, value: Any) -> list[Any]:
        self._values[number] = json.loads(json.dumps(value))
        self._barrier.wait()
        found = [*self._values]
        self._barrier.wait()
        return found


def on_all(size: int, work: Callable[[Peers], Any]) -> list[Any]:
    """Do the same on every rank; return what each returned or raised."""
    peers, results = InThreads(size), [None] * size

    def run(number: int) -> None:
        try:
            results[number] = work(peers.rank(number))
        except Exception as error:  # noqa: BLE001 - it is what is compared
            results[number] = cast("None", error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def make_state(log: Path | None = None, *, step: int = 0, value: float = 0.0) -> TrainingState:
    """A state of one parameter, after so many steps."""
    parameter = torch.nn.Parameter(torch.full((3,), value))
    state = TrainingState(
        parameters={"weight": parameter},
        optimizer=torch.optim.AdamW([parameter]),
        scaler=None,
        log=MetricsLog(log),
    )
    for number in range(1, step + 1):
        state.log.append({"step": number})
    state.counters.step = step
    return state


def make_job(peers: Peers, kept: list[str] | None = None) -> JobContext:
    """What the functions here use of a job."""
    messages = [] if kept is None else kept
    return cast("JobContext", SimpleNamespace(peers=peers, on_message=messages.append))


def config_of(**train: Any) -> TrainerConfig:
    """A config with these settings of the training."""
    found = tiny.make_config(Path("model"), Path("rows.jsonl"), train=train)
    return TrainerConfig.model_validate(found)


def test_rank_0_goes_first_and_the_others_find_its_result() -> None:
    """No other rank enters before rank 0 has left; where all may, nobody waits."""
    order: list[int] = []

    def work(peers: Peers) -> None:
        with rank_0_first(peers):
            order.append(peers.rank)

    on_all(3, work)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]
    assert on_all(2, lambda peers: Turn(peers, all_at_once=peers.rank == 0).is_awaited) == [
        False,
        False,
    ]
    assert on_all(2, lambda peers: Turn(peers).is_awaited) == [True, False]
    assert not Turn(ALONE).is_awaited


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    """The others have a status, a log and curves that leave nothing behind."""
    place = RankPlace(rank=1, size=2, address="127.0.0.1:1")
    options = JobOptions(run_dir=tmp_path, place=place)

    assert writers_of(options) is NOTHING
    assert writers_of(JobOptions(run_dir=tmp_path)) is EVERYTHING
    with open_status(options, NOTHING, now=lambda: NOON) as status:
        status.update(phase=Phase.TRAINING, at_once=True)
    log = MetricsLog(NOTHING.path(tmp_path / "metrics.jsonl"))
    log.append({"step": 1})
    log.sync()
    replace_file(tmp_path / "any.json", "{}", disk=NoDisk())
    NoDisk().make_directory(tmp_path / "folder")
    tracker = NOTHING.tracker(tmp_path, steps_done=0, on_message=print)

    assert isinstance(tracker, NoTracker)
    assert log.to_bytes() == b'{"step": 1}\n'
    assert list(tmp_path.iterdir()) == []
    assert EVERYTHING.path(tmp_path / "a") == tmp_path / "a"
    assert isinstance(EVERYTHING.disk, RealDisk)


def test_a_rank_finds_its_place_in_the_arguments() -> None:
    """What the launcher writes into the arguments is what the rank reads there."""
    place = RankPlace(rank=2, size=4, address="127.0.0.1:9", listen_fd=7)
    words = place.to_arguments(99)
    pairs = dict(zip(words[::2], words[1::2], strict=True))

    assert pairs == {
        "--rank": "2", "--ranks": "4", "--store": "127.0.0.1:9", "--listen-fd": "7",
        "--launcher": "99",
    }  # fmt: skip
    given = SimpleNamespace(rank=2, ranks=4, store="127.0.0.1:9", listen_fd=7)
    assert place_of(cast("Any", given)) == place
    assert place_of(cast("Any", SimpleNamespace(rank=None))) is None


def test_ranks_get_the_arguments_of_the_launcher_and_no_token(tmp_path: Path) -> None:
    """Every option goes on; the token is announced and not named."""
    options = JobOptions(
        run_dir=tmp_path,
        metadata_url="http://127.0.0.1:1",
        metadata_api="aws",
        allow_change=("train.lr", "hardware.gpu"),
        price_usd_per_h=0.25,
        cards=3,
        token=Secret("s3cret"),
    )

    assert rank_arguments(options) == [
        "train", "--run-dir", str(tmp_path), "--cards", "3",
        "--metadata-url", "http://127.0.0.1:1", "--metadata-api", "aws",
        "--allow-change", "train.lr", "hardware.gpu", "--price-usd-per-h", "0.25", "--token-stdin",
    ]  # fmt: skip
    assert rank_arguments(JobOptions(run_dir=tmp_path, cards=2))[3:] == ["--cards", "2"]


def test_the_status_says_why_another_rank_failed(tmp_path: Path) -> None:
    """The launcher writes what rank 0 cannot; what rank 0 wrote of itself stays."""
    status, messages = tmp_path / "status.json", list[str]()
    status.write_text(json.dumps({"phase": "preempted", "step": 7}))
    options = JobOptions(run_dir=tmp_path, token=Secret("s3cret"))

    def report(errors: tuple[str, str], *codes: int) -> dict[str, Any]:
        ended = Ended(ends=tuple(RankEnd(code=code) for code in codes), errors=errors)
        report_failure(options, ended, messages.append, now=lambda: NOON)
        return dict(json.loads(status.read_text()))

    assert report(("", "s3cret"), 75, 76)["phase"] == "preempted"
    found = report(("", "ValueError: s3cret is odd"), 76, 70)
    assert (found["phase"], found["step"]) == ("failed", 7)
    assert found["error"] == "card 1: ValueError: *** is odd"
    assert report(("", ""), 70, 76)["error"] == "card 1: ValueError: *** is odd"
    status.unlink()
    assert report(("loading", ""), 137, 76)["error"] == "card 0: was killed by SIGKILL"
    assert messages == ["card 1: ValueError: *** is odd", "card 0: was killed by SIGKILL"]


def test_a_failure_without_a_status_or_a_disk_is_no_error(tmp_path: Path) -> None:
    """A status that is none is replaced; a folder that is gone costs the status only."""
    (tmp_path / "status.json").write_text("no JSON")
    write_failure(tmp_path / "status.json", "why", disk=RealDisk(), now=lambda: NOON)
    write_failure(tmp_path / "absent" / "status.json", "why", disk=RealDisk(), now=lambda: NOON)

    assert json.loads((tmp_path / "status.json").read_text())["error"] == "why"
    assert not (tmp_path / "absent").exists()


def make_checkpoints(root: Path, *steps: int) -> Path:
    """Checkpoints of a state of one parameter after these steps."""
    store = Store(root / "checkpoints", keep=9, disk=RealDisk())
    for step in steps:
        store.save(make_state(step=step).snapshot({"config": {}}))
    return store.root


def test_a_checkpoint_that_one_rank_cannot_read_is_used_by_none(tmp_path: Path) -> None:
    """All go back to the newest that is whole for everybody, and say so."""
    roots = [make_checkpoints(tmp_path / str(rank), 3, 6) for rank in range(3)]
    (roots[1] / "step-00000006" / "state.json").write_text("damaged")
    messages: list[str] = []

    def work(peers: Peers) -> int | None:
        store = Store(roots[peers.rank], keep=9, disk=RealDisk())
        found = find_newest(make_job(peers, messages), store, tensor_bytes_max=1 << 20, below=None)
        return None if found is None else found.step

    assert on_all(3, work) == [3, 3, 3]
    assert any("not every rank can read the checkpoint of step 6" in text for text in messages)
    (roots[2] / "step-00000003" / "state.json").write_text("damaged")
    (roots[2] / "step-00000006" / "state.json").write_text("damaged")
    assert on_all(3, work) == [None, None, None]


def facts(gpu: str = "A10", lr: int = 1) -> Any:
    """Inputs whose fingerprint names this card."""
    return SimpleNamespace(fingerprint={"hardware": {"gpu": gpu}, "config": {"lr": lr}})


def test_every_rank_counts_as_the_first_does() -> None:
    """How often a run was resumed is what rank 0 found, whatever others read meanwhile."""

    def work(peers: Peers) -> tuple[int, int]:
        state = make_state(step=2)
        state.counters.resumes, state.counters.redone_steps = 5 - peers.rank, peers.rank
        take_counts(make_job(peers), facts(), state)
        return state.counters.resumes, state.counters.redone_steps

    assert on_all(2, work) == [(5, 0), (5, 0)]


def test_ranks_that_would_compute_other_bits_do_not_begin() -> None:
    """Other cards need another machine, other states another start; every rank says so."""

    def mixed(peers: Peers) -> None:
        take_counts(make_job(peers), facts("A10" if peers.rank else "T4"), make_state())

    def apart(peers: Peers) -> None:
        take_counts(make_job(peers), facts(), make_state(value=float(peers.rank)))

    def changed(peers: Peers) -> None:
        take_counts(make_job(peers), facts(lr=peers.rank), make_state())

    for error in on_all(2, mixed):
        assert isinstance(error, ConfigError)
        assert "hardware" in str(error)
        assert "one kind" in str(error)
    assert all(isinstance(error, CardsDisagree) for error in on_all(2, apart))
    for error in on_all(2, changed):
        assert isinstance(error, CardsDisagree)
        assert "differ in config, which changed while they started" in str(error)


def make_replica(root: Path, step: int) -> ReplicaCheckpointer:
    """What follows the steps of a second rank, after so many."""
    store = LockedStore(root / "checkpoints", keep=2, disk=RealDisk())
    return ReplicaCheckpointer(
        state=make_state(step=step), store=store, fingerprint={}, on_message=print
    )


def test_another_rank_saves_only_what_nobody_saved(tmp_path: Path) -> None:
    """The last whole step is saved once; nothing is at the start, at the end, or if it is there."""
    replica = make_replica(tmp_path, 4)
    replica.after_step({"step": 5})
    replica.state.counters.step = 5
    replica.amend({"step": 5, "validation_loss": 1.0})
    replica.finish()

    assert not (tmp_path / "checkpoints").exists()
    assert make_replica(tmp_path, 0).save_now()
    assert not (tmp_path / "checkpoints").exists()
    assert replica.save_now()
    assert steps_present(tmp_path / "checkpoints") == [5]
    log = (tmp_path / "checkpoints" / "step-00000005" / "metrics.jsonl").read_text()
    assert log.splitlines()[-1] == '{"step": 5, "validation_loss": 1.0}'
    before = (tmp_path / "checkpoints" / "step-00000005").stat().st_mtime_ns
    assert make_replica(tmp_path, 5).save_now()
    assert (tmp_path / "checkpoints" / "step-00000005").stat().st_mtime_ns == before


def test_a_lock_that_is_never_given_back_costs_the_save_only(tmp_path: Path) -> None:
    """A rank that saves for ever, and is not stopped, is not waited for."""
    ticks = iter(range(1000))

    def hold_again() -> None:
        with saving_lock(
            tmp_path / ".saving.lock", clock=lambda: next(ticks), sleep=lambda _s: None
        ):
            raise AssertionError("two ranks hold one lock")

    with saving_lock(tmp_path / ".saving.lock"), pytest.raises(TimeoutError, match="another rank"):
        hold_again()
    with saving_lock(tmp_path / ".saving.lock"):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from trainer.saving.replica import saving_lock
with saving_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_rank_that_was_stopped_while_it_saved_keeps_no_other_from_saving(tmp_path: Path) -> None:
    """Its lock stays with it: the others take another one, still one at a time."""
    lock = tmp_path / ".saving.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
            ticks = iter(range(1000))

            def hold_again() -> None:
                with saving_lock(lock, clock=lambda: next(ticks), sleep=lambda _s: None):
                    raise AssertionError("two ranks hold one lock")

            with saving_lock(lock), pytest.raises(TimeoutError, match=r"saving\.lock\.next"):
                hold_again()
        finally:
            holder.kill()


@pytest.mark.parametrize(
    ("train", "cards", "text"),
    [
        ({"batch_size": 16}, 4, "a step of 16 rows has 4 micro-batches of at most 4 rows for 4"),
        ({"batch_size": 16, "micro_batch": 1}, 3, "16 micro-batches of at most 1 row for 3"),
        ({"batch_size": 5}, 4, "1 of 4 cards has nothing to do: a step of 5 rows is 3 micro"),
        ({"batch_size": 2}, 8, "6 of 8 cards have nothing to do: a step of 2 rows is 2 micro"),
    ],
)
def test_idle_cards_are_reported_before_anything_is_loaded(
    train: Mapping[str, Any], cards: int, text: str
) -> None:
    """How a step is cut follows from the config alone, with a warning if cards have no part."""
    found = describe_split(config_of(**train), cards)

    assert text in found
    assert found.startswith("warning: ") == ("nothing to do" in found)


@pytest.mark.parametrize(
    ("wanted", "cards", "size"), [("auto", 1, 10), ("auto", 4, 3), (8, 1, 8), (8, 4, 3), (2, 4, 2)]
)
def test_a_micro_batch_is_at_most_the_share_of_a_card(
    wanted: int | str, cards: int, size: int
) -> None:
    """By the configured number of cards, so that it is the same wherever the run begins."""
    config = config_of(batch_size=10, micro_batch=wanted)

    assert choose_micro_batch(config, {}, [], gpu=None, cards=cards).size == size


def test_ranks_share_the_cores_if_nobody_chose() -> None:
    """With `auto` each has its part of the cores, at least one; a configured number stays."""
    before = torch.get_num_threads()
    try:
        found = [
            set_threads(config_of(threads="auto").train, ranks=3, cores=lambda: 8),
            set_threads(config_of(threads="auto").train, ranks=8, cores=lambda: 2),
            set_threads(config_of(threads=3).train, ranks=8, cores=lambda: 2),
        ]
    finally:
        torch.set_num_threads(before)

    assert found == [2, 1, 3]
    assert set_threads(config_of(threads="auto").train) == before
