"""Ranks of one training notice failures of each other, and end with the state of a whole step."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.ranks import STEPS, Failure, Report, Story, by_one_process, ranks, run_dirs, together

QLORA = {"method": {"kind": "qlora"}}
WHOLE = {"method": {"kind": "lora"}}
"""Without a base that is kept unpacked, whose values are what memory is saved on first."""


def story(directory: Path, size: int, *failures: Failure, **fields: Any) -> Story:
    """Return a training by so many ranks, with a directory more for one process alone."""
    tables = fields.pop("tables", QLORA)
    return Story(
        run_dirs=run_dirs(directory, size + 1, **tables), until=STEPS, failures=failures, **fields
    )


def alone(plot: Story, until: int) -> Report:
    """Return what one process has after so many steps, in the directory that is left over."""
    return by_one_process(plot.run_dirs[-1], replace(plot, until=until, failures=()))


def assert_whole_at(report: Report, plot: Story, step: int) -> None:
    """Check that a rank has ended with the state of a step, to the bit, and without gradients."""
    expected = alone(plot, step)
    assert (report.step, report.grads) == (step, 0)
    assert report.digests == expected.digests
    assert (report.adapter, report.moments) == (expected.adapter, expected.moments)


@pytest.mark.parametrize("rank", [0, 2])
def test_survivors_of_a_killed_rank_leave_at_once_with_the_last_whole_step(
    tmp_path: Path, rank: int
) -> None:
    """Whether it hosted the store or not: nobody hangs, neither in a wait nor at its exit."""
    plot = story(tmp_path, 3, Failure(kind="kill", rank=rank, step=2, number=rank))
    with ranks(3, plot) as started:
        survivors = [one for one in range(3) if one != rank]
        started.processes[rank].join(240)
        died = time.monotonic()
        reports = [started.report(one) for one in survivors]
        ended_s = time.monotonic() - died

    assert [one.error for one in reports] == ["PeerLost"] * 2, [one.text for one in reports]
    assert ended_s < 15
    assert_whole_at(reports[0], plot, 2)
    assert reports[1].adapter == reports[0].adapter


@pytest.mark.parametrize("rank", [0, 1])
def test_survivors_of_a_stopped_rank_leave_after_its_silence(tmp_path: Path, rank: int) -> None:
    """A rank that gives no sign of life for so long counts as lost, the host of the store, too."""
    plot = story(tmp_path, 3, Failure(kind="stop", rank=rank, step=1, number=rank), silent_s=4.0)
    with ranks(3, plot) as started:
        reports = [started.report(one) for one in range(3) if one != rank]

    assert [one.error for one in reports] == ["PeerLost"] * 2, [one.text for one in reports]
    assert all(f"card {rank}" in one.text for one in reports if "silent" in one.text)
    assert any("silent" in one.text for one in reports)
    assert_whole_at(reports[0], plot, 1)


def test_a_survivor_that_has_to_leave_does_not_wait_out_the_silence(tmp_path: Path) -> None:
    """With a signal to end, a stopped rank is waited for a few seconds only."""
    plot = story(tmp_path, 2, Failure(kind="stop", rank=1, step=1, number=1))
    with ranks(2, plot) as started:
        wait_for_stop(started.pid(1))
        os.kill(started.pid(0), signal.SIGTERM)
        began = time.monotonic()
        report = started.report(0)
        ended_s = time.monotonic() - began

    assert report.error in {"PeerLost", "Preempted"}, report.text
    assert ended_s < 15
    assert_whole_at(report, plot, 1)


def wait_for_stop(pid: int) -> None:
    """Return once a process is stopped."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if fields[0] == "T":
            return
        time.sleep(0.05)
    raise AssertionError("the process was not stopped")


def test_a_notice_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """It was heard in the middle of a step; that step is ended by all, and no other begun."""
    plot = story(tmp_path, 3, Failure(kind="notice", rank=1, step=2, number=1, seconds=600))
    reports = together(3, plot)

    assert [one.error for one in reports] == ["Preempted"] * 3
    for report in reports:
        assert_whole_at(report, plot, 3)


def test_a_notice_without_time_for_the_step_gives_it_up_on_all_ranks(tmp_path: Path) -> None:
    """The others hear of it within the step, and have the state of the one before."""
    plot = story(tmp_path, 2, Failure(kind="notice", rank=1, step=2, number=1, seconds=0.0))
    reports = together(2, plot)

    assert {one.error for one in reports} == {"Preempted"}, [one.text for one in reports]
    for report in reports:
        assert_whole_at(report, plot, 2)


@pytest.mark.parametrize(("rank", "number"), [(0, 0), (1, 1), (0, 2)])
def test_a_rank_without_memory_lets_all_halve_the_micro_batch(
    tmp_path: Path, rank: int, number: int
) -> None:
    """All give the step up and do it again with the next saving, as one process does."""
    failure = Failure(kind="memory", rank=rank, step=2, number=number)
    plot = story(tmp_path, 2, failure, tables=WHOLE)
    reports = together(2, plot)

    assert [one.error for one in reports] == ["", ""], [one.text for one in reports]
    assert [one.micro_batch for one in reports] == [1, 1]
    assert reports[0].digests == reports[1].digests
    assert reports[0].digests == halved_after(plot, 2)
    assert all("micro-batch 2 -> 1" in one.messages[-2] for one in reports)


def halved_after(plot: Story, step: int) -> list[str]:
    """Return the digests of one process that runs out of memory in the step after `step`."""
    return by_one_process(plot.run_dirs[-1], plot, short_after=step).digests


def test_ranks_begin_with_the_smallest_micro_batch_that_any_of_them_needs(tmp_path: Path) -> None:
    """What one rank measured before the first step decides for all."""
    plot = story(tmp_path, 2, micro_batches=(2, 1), tables=WHOLE)
    reports = together(2, plot)

    assert [one.micro_batch for one in reports] == [1, 1]
    assert reports[0].digests == reports[1].digests == halved_after(plot, 0)


@pytest.mark.parametrize("what", ["parameter", "moment", "sum"])
def test_a_flipped_bit_stops_the_training_at_once_and_names_the_card(
    tmp_path: Path, what: str
) -> None:
    """Of three cards the one that differs is named; the step is not logged."""
    reports = together(3, story(tmp_path, 3, flips=((1, 3, what),)))

    assert [one.error for one in reports] == ["CardsDisagree"] * 3
    assert {one.text for one in reports} == {reports[0].text}
    assert reports[0].text.startswith("card 1 computed other bits at step 3;")
    assert [len(one.records) for one in reports] == [2] * 3


def test_of_two_cards_that_differ_both_are_named(tmp_path: Path) -> None:
    """It cannot be told which of them is wrong."""
    reports = together(2, story(tmp_path, 2, flips=((0, 1, "moment"),)))

    assert reports[0].text.startswith("cards 0 and 1 computed different bits at step 1, and it")


def test_ranks_that_were_restored_from_other_bits_do_not_begin(tmp_path: Path) -> None:
    """The first comparison is before the first step of a process."""
    plot = story(tmp_path, 2, save=True)
    by_one_process(plot.run_dirs[0], replace(plot, until=2))
    path = plot.run_dirs[1] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "train": {**config["train"], "lr": 2e-2}}))
    by_one_process(plot.run_dirs[1], replace(plot, until=2))
    path.write_text(json.dumps(config))
    reports = together(2, replace(plot, resumed=True, save=False))

    assert [one.error for one in reports] == ["CardsDisagree"] * 2, [one.text for one in reports]
    assert [one.records for one in reports] == [[], []]


def test_ranks_go_on_from_what_another_number_of_ranks_saved(tmp_path: Path) -> None:
    """Two ranks do two steps and three the next two, with the bits of one process."""
    plot = story(tmp_path, 3, save=True)
    together(2, replace(plot, until=2))
    shutil.copytree(plot.run_dirs[0], plot.run_dirs[2], dirs_exist_ok=True)
    reports = together(3, replace(plot, until=4, resumed=True, save=False))

    assert [one.error for one in reports] == [""] * 3, [one.text for one in reports]
    assert reports[0].adapter == alone(plot, 4).adapter


def test_an_error_of_the_program_on_one_rank_ends_all(tmp_path: Path) -> None:
    """The others learn why that card has left."""
    reports = together(2, story(tmp_path, 2, Failure(kind="bug", rank=0, step=1, number=0)))

    assert [one.error for one in reports] == ["KeyError", "PeerLost"]
    assert "KeyError" in reports[1].text or "has ended" in reports[1].text


@dataclass(frozen=True)
class Crossed:
    """Ranks that do not wait in the same operation."""

    stuck_s: float = 2.0


def wait_elsewhere(peers: Any, _story: Crossed, _flag: Any, _report: Report) -> None:
    """Gather more often on rank 1, where the other has something else to gather."""
    peers.gather("ready")
    if peers.rank:
        peers.channel.waiter.wait([Never()])
    peers.gather("done")


class Never:
    """An operation in which no other rank takes part."""

    def is_completed(self) -> bool:
        """It does not end."""
        return False

    def wait(self) -> None:
        """Return, which is never asked for."""


def test_ranks_that_all_wait_leave_with_an_error_that_names_both_places() -> None:
    """All are alive and no operation can end: that is noticed, and both places are named."""
    reports = together(2, Crossed(), wait_elsewhere)

    assert [one.error for one in reports] == ["PeerLost"] * 2
    stuck = [one.text for one in reports if "wait for each other" in one.text]
    assert stuck, [one.text for one in reports]
    assert re.search(r"card 0 in wait_elsewhere .*card 1 in wait_elsewhere \(", stuck[0])
