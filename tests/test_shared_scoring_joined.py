"""Processes that gloo joins score a run as one does, with one of them killed or told to leave."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import tiny
from support.ranks import Report, ranks, together
from support.scored_answers import asks, write

from trainer import model as models
from trainer.atomic import RealDisk
from trainer.config import load_config
from trainer.eviction import PreemptionFlag
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.job.context import JobContext, JobOptions
from trainer.job.prepare import prepare_inputs
from trainer.job.score_stage import score
from trainer.rundir.layout import SCORED, data_facts, scoring_scratch
from trainer.rundir.status import HeartbeatWriter
from trainer.scoring import constrained

ROWS = 14


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run to score, and what happens on rank 1 in one of its passes."""

    run_dir: Path
    at_pass: int = -1
    what: str = ""
    """`kill` or `notice`."""
    silent_s: float = 25.0


def do_score(peers: Peers, story: ScoredRun, flag: PreemptionFlag, report: Report) -> None:
    """Score a run as the stage of a job does, three rows in a batch."""
    run_dir = story.run_dir
    config = load_config(run_dir / "config.json")
    heartbeat = HeartbeatWriter(
        run_dir / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
    )
    job = JobContext(
        options=JobOptions(run_dir=run_dir),
        config=config,
        inputs=data_facts(config, run_dir),
        heartbeat=heartbeat,
        flag=flag,
        on_message=report.messages.append,
        peers=peers,
    )
    prepared = prepare_inputs(job)
    base = models.load_base(
        prepared.source, config.method, precision=prepared.precision, device=prepared.device
    )
    passes = 0

    def before_pass(_module: Any, _arguments: Any) -> None:
        nonlocal passes
        passes += 1
        if peers.rank == 1 and passes == story.at_pass:
            if story.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            flag.set(seconds_left=60, reason="test")

    base.register_forward_pre_hook(before_pass)
    settings = {**(constrained.batches_by_length.__kwdefaults__ or {}), "rows": 3}
    with mock.patch.object(constrained.batches_by_length, "__kwdefaults__", settings):
        score(job, prepared, base, "before")
    assert (run_dir / SCORED).exists()
    report.extra = passes


def lay_out(directory: Path, base: Path) -> Path:
    """Make a run whose held-out rows are scored by their loss, a pass for each batch."""
    directory.mkdir()
    rows = write(directory / "rows.jsonl", asks(ROWS))
    config = tiny.make_config(
        base,
        rows,
        data={"eval": str(rows), "prompt": "{ask}: ", "completion": "{answer}"},
        method={"kind": "qlora"},
        eval={"kind": "loss"},
    )
    return tiny.write_config(directory / "run", config)


def read(run_dir: Path) -> bytes:
    """Return a result as it was written, but for how long it took."""
    lines = (run_dir / "eval-before.json").read_bytes().splitlines()
    return b"\n".join(line for line in lines if not line.startswith(b' "seconds":'))


def kept_rows(run_dir: Path) -> int:
    """Return how many rows an interrupted scoring has kept."""
    path = scoring_scratch(run_dir, "before") / "loss.jsonl"
    return len([json.loads(line) for line in path.read_text().splitlines()]) - 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model that is scored."""
    return tiny.make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what one process writes, in five passes."""
    torch.set_num_threads(1)
    run_dir = lay_out(tmp_path_factory.mktemp("alone") / "run", base)
    report = Report()
    do_score(ALONE, ScoredRun(run_dir=run_dir), PreemptionFlag(time.monotonic), report)
    assert report.extra == 5
    return read(run_dir)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_write_the_bytes_of_one(
    size: int, base: Path, alone: bytes, tmp_path: Path
) -> None:
    """Each computes its share of the five batches, and the first one alone writes."""
    run_dir = lay_out(tmp_path / "run", base)
    reports = together(size, ScoredRun(run_dir=run_dir), do_score)

    assert [report.error for report in reports] == [""] * size
    assert [report.extra for report in reports] == {2: [3, 2], 3: [2, 2, 1]}[size]
    assert read(run_dir) == alone
    assert not scoring_scratch(run_dir, "before").exists()


@pytest.mark.parametrize("then", [1, 3])
def test_a_scoring_that_lost_a_process_goes_on_with_more_or_fewer(
    then: int, base: Path, alone: bytes, tmp_path: Path
) -> None:
    """Killed in its second batch, rank 1 takes with it what that round computed, and no more."""
    run_dir = lay_out(tmp_path / "run", base)
    with ranks(2, ScoredRun(run_dir=run_dir, at_pass=2, what="kill"), do_score) as started:
        report = started.report(0)
    again = Report()
    if then == 1:
        do_score(ALONE, ScoredRun(run_dir=run_dir), PreemptionFlag(time.monotonic), again)
        passes = [again.extra]
    else:
        passes = [one.extra for one in together(then, ScoredRun(run_dir=run_dir), do_score)]

    assert report.error == "PeerLost"
    assert read(run_dir) == alone
    assert sum(passes) == 3  # of five batches two were kept


def test_a_notice_to_one_process_ends_the_scoring_of_all(
    base: Path, alone: bytes, tmp_path: Path
) -> None:
    """Both leave after the round in which it came, whose rows are kept."""
    run_dir = lay_out(tmp_path / "run", base)
    reports = together(2, ScoredRun(run_dir=run_dir, at_pass=2, what="notice"), do_score)

    assert [report.error for report in reports] == ["Preempted"] * 2
    assert kept_rows(run_dir) == 12
    assert not (run_dir / "eval-before.json").exists()
    assert [one.extra for one in together(2, ScoredRun(run_dir=run_dir), do_score)] == [1, 0]
    assert read(run_dir) == alone
