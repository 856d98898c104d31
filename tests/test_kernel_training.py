"""A whole training with kernels: the same learning, exact when killed, named where it counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.rig import rig, saves_in_step
from support.tiny import adapter_bytes, losses, make_run

from trainer.data.codec import NOT_TRAINED, Example
from trainer.errors import Preempted
from trainer.job import use_kernels
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.job.replay import replay
from trainer.kernels.attention import UnmaskedAttention
from trainer.kernels.choose import choose_kernels
from trainer.kernels.kernel_set import Kernel
from trainer.kernels.varlen import PackedAttention
from trainer.training.longest import longest_passes
from trainer.training.loop import all_passes
from trainer.training.passes import backward_pass

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
TABLES: dict[str, Any] = {
    "train": {"steps": 4, "batch_size": 4, "micro_batch": 2, "gradient_checkpointing": True},
    "checkpoint": {"every": 2},
    "method": {"dropout": 0.0},
}
VERSIONS = {"packed": "row-by-row-1", "unmasked": "sdpa-unmasked-1", "plain": None}


def kernel_of(way: str) -> list[Kernel]:
    """Return the kernels that a run is offered."""
    if way == "packed":
        return [PackedAttention(longest=1024, on_card=False)]
    return [UnmaskedAttention()] if way == "unmasked" else []


@contextmanager
def offered(way: str) -> Iterator[None]:
    """Offer kernels to a processor, which otherwise has none."""
    choose = partial(choose_kernels, kernels=kernel_of(way))
    with mock.patch.object(use_kernels, "choose_kernels", choose), saves_in_step():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train the same run in each way."""
    runs = {way: make_run(tmp_path_factory.mktemp(way), **TABLES) for way in VERSIONS}
    for way, run in runs.items():
        with offered(way):
            run_job(JobOptions(run_dir=run), lambda _text: None)
    return runs


def hardware(run: Path) -> dict[str, Any]:
    """Return what the last checkpoint of a run says of the machine."""
    newest = max((run / "checkpoints").glob("step-*"))
    found: dict[str, Any] = json.loads((newest / "fingerprint.json").read_text())["hardware"]
    return found


@pytest.mark.parametrize("way", VERSIONS)
def test_a_run_learns_the_same_with_kernels_and_names_them(
    way: str, trained: dict[str, Path]
) -> None:
    """Losses differ by rounding alone, and the fingerprint names what computed them."""
    plain, found = losses(trained["plain"]), losses(trained[way])
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in plain], rel=1e-4)
    version = VERSIONS[way]
    assert hardware(trained[way]).get("kernels") == (
        None if version is None else {"attention": version}
    )


@pytest.mark.parametrize("way", ["packed", "unmasked"])
def test_a_run_that_was_killed_in_a_step_ends_with_the_same_bits(
    way: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    """A kernel computes the same after a kill, in another process of the same kind."""
    run = make_run(tmp_path, **TABLES)
    calls = iter(range(100))

    def dying(*arguments: Any, **more: Any) -> Any:
        if next(calls) == 5:  # in the middle of the third step
            raise KeyboardInterrupt
        return backward_pass(*arguments, **more)

    target = f"{all_passes.__module__}.backward_pass"
    with offered(way), mock.patch(target, dying), pytest.raises(KeyboardInterrupt):
        run_job(JobOptions(run_dir=run), lambda _text: None)
    with offered(way):
        run_job(JobOptions(run_dir=run), lambda _text: None)
    assert adapter_bytes(run) == adapter_bytes(trained[way])
    assert losses(run) == losses(trained[way])


def test_a_run_continued_with_other_kernels_says_from_where_its_bits_differ(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """Another card may have other kernels: the run goes on, and is no longer exact."""
    run = make_run(tmp_path, **TABLES)
    calls = iter(range(100))

    def noticed(*arguments: Any, **more: Any) -> Any:
        if next(calls) == 5:
            raise Preempted
        return backward_pass(*arguments, **more)

    target = f"{all_passes.__module__}.backward_pass"
    with offered("packed"), mock.patch(target, noticed), pytest.raises(Preempted):
        run_job(JobOptions(run_dir=run), lambda _text: None)
    messages: list[str] = []
    with offered("plain"):
        run_job(JobOptions(run_dir=run), messages.append)
    wanted = 'not bit for bit from step 3: kernels: was {"attention": "row-by-row-1"}, is nothing'
    assert wanted in messages
    status = json.loads((run / "status.json").read_text())
    assert (status["exact"], status["inexact_from"]) == (False, 3)
    assert adapter_bytes(run) != adapter_bytes(trained["plain"])


def test_a_replay_computes_with_the_same_kernels(trained: dict[str, Path]) -> None:
    """What a run logged is compared with what its kernels compute again."""
    run = trained["packed"]
    with offered("packed"):
        again = replay(run, steps=2, clock=lambda: 0.0, on_message=lambda _text: None)
    assert (again.equal, again.caveats) == (True, ())
    with offered("plain"):
        other = replay(run, steps=2, clock=lambda: 0.0, on_message=lambda _text: None)
    assert other.caveats == ('kernels: was {"attention": "row-by-row-1"}, is nothing',)


def test_the_longest_pass_without_padding_is_the_one_with_the_most_tokens(tmp_path: Path) -> None:
    """One long row beside a short one is the largest with padding, and not without."""
    made = rig(make_run(tmp_path, rows=4, train={"steps": 4, "batch_size": 2, "micro_batch": 2}))
    lengths = (40, 2, 30, 30)
    rows = [
        Example((5,) * length, (NOT_TRAINED,) * (length - 1) + (5,), "", "", 1, length - 1)
        for length in lengths
    ]
    schedule = replace(made.context.schedule, lengths=lengths, group_by_length=False, seed=1)
    cuts = {tuple(sorted(lengths[at] for at in schedule.batch(step))) for step in range(4)}
    assert cuts == {(2, 40), (30, 30)}
    for packed, longest, tokens in ((False, (2, 40), 80), (True, (30, 30), 60)):
        found = longest_passes(schedule, rows, micro_batch=2, packed=packed)[0]
        assert tuple(sorted(len(one.input_ids) for one in found.examples)) == longest
        assert found.tokens == tokens
        assert found.shortened(2).packed is packed
