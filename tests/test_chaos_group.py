"""Kills of groups: chosen by the seed, spread evenly, compared bit by bit, and done for real."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from chaos_group.configurations import METHODS
from chaos_group.plan import (
    WORLDS,
    Kill,
    Kind,
    choose_kills,
    counts_by_name,
    last_world,
    runs_of,
)
from chaos_group.progress import Progress, outcome, records
from chaos_group.verdict import (
    Outcome,
    Result,
    Tried,
    differences,
    exit_code,
    prefix_differences,
    problems_of,
    table,
    without_times,
)
from support import tiny

KILL = Kill(kind=Kind.FIRST_RANK, world=3, steps=2, fraction=0.5)
CALM = Outcome(params={1: "a", 2: "b"}, adapter={"x": "1"}, scores={"after": {"value": 0.5}})


def chosen(count: int, *, seed: int) -> list[Kill]:
    """Choose so many kills by a seed."""
    return choose_kills(count, random.Random(seed))  # noqa: S311 - moments, not secrets


def test_the_seed_decides_every_kill() -> None:
    """The same seed gives the same kills, and another one gives others."""
    first, again, other = (chosen(20, seed=seed) for seed in (5, 5, 6))

    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(20))
def test_nine_kills_go_through_all_worlds_and_every_kind(seed: int) -> None:
    """World sizes follow one another as 1, 3, 2, and each kind of kill comes in any nine."""
    kills = chosen(9, seed=seed)
    order = [WORLDS.index(kill.world) for kill in kills]

    assert all((after - before) % 3 == 1 for before, after in pairwise(order))
    assert {kill.kind for kill in kills} == set(Kind)
    for kill in kills:
        assert 0 <= kill.rank < kill.world
        assert not (kill.world == 1 and kill.kind.leaves_survivors)
        assert (kill.rank > 0) == (kill.kind in {Kind.OTHER_RANK, Kind.OTHER_SILENT})


def test_fifty_kills_give_every_configuration_at_least_six() -> None:
    """Fifty kills over the six configurations are eight or nine each."""
    counts = counts_by_name(list(METHODS), 50)

    assert sum(counts.values()) == 50
    assert sorted(counts.values()) == [8, 8, 8, 8, 9, 9]


def test_runs_share_the_kills_evenly_and_in_order() -> None:
    """Nine kills of at most five a run are two runs, of four and of five."""
    kills = chosen(9, seed=0)

    assert [len(run) for run in runs_of(kills, kills_per_run=5)] == [4, 5]
    assert [kill for run in runs_of(kills, kills_per_run=5) for kill in run] == kills


def test_the_last_start_of_a_run_has_the_next_world() -> None:
    """A run ends with the world size that follows that of its last kill, or with three ranks."""
    worlds = {world: last_world([replace(KILL, world=world)]) for world in WORLDS}

    assert worlds == {1: 3, 3: 2, 2: 1}
    assert last_world([]) == 3


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(CALM, params={1: "a", 2: "c"}), "step 2: parameters c, expected b"),
        (replace(CALM, params={1: "a"}), r"steps \[2\] are not in the log"),
        (replace(CALM, adapter={"x": "2"}), "another adapter"),
        (replace(CALM, scores={"after": {"value": 0.4}}), "other scores"),
    ],
)
def test_any_difference_is_found(found: Outcome, words: str) -> None:
    """Other parameters in one step, a missing step, another adapter, and another score all show."""
    assert re.search(words, " ".join(differences(found, CALM)))
    assert differences(CALM, CALM) == []


def test_a_log_that_ends_early_is_equal_as_far_as_it_goes() -> None:
    """After a kill, only the steps that were done are compared."""
    assert prefix_differences({1: "a"}, CALM.params) == []
    assert prefix_differences({3: "c"}, CALM.params) != []


def test_scores_are_compared_without_their_times() -> None:
    """What a clock measured is left out at every depth, and nothing else."""
    scores = {"value": 1, "seconds": 2, "all": [{"rows_per_s": 3, "n": 4}]}

    assert without_times(scores) == {"value": 1, "all": [{"n": 4}]}


@pytest.mark.parametrize(
    ("kind", "redone", "left_s", "orphans", "words"),
    [
        (Kind.FIRST_RANK, 2, 0.5, [], "2 steps were done again"),
        (Kind.NOTICE, 1, 0.5, [], "in spite of a notice"),
        (Kind.OTHER_SILENT, 1, 31.0, [], "ended 31.0 s after the loss"),
        (Kind.PARENT, 3, None, [], "did not end by themselves"),
        (Kind.PARENT, 3, 1.0, [77], r"processes remained: \[77\]"),
    ],
)
def test_what_is_promised_of_a_loss_is_checked(
    kind: Kind, redone: int, left_s: float | None, orphans: list[int], words: str
) -> None:
    """Steps done again, ranks that stay, and processes that remain are problems."""
    kill = replace(KILL, kind=kind)

    assert re.search(words, problems_of(kill, redone=redone, left_s=left_s, orphans=orphans)[0])


@pytest.mark.parametrize(
    ("kind", "world", "redone"),
    [(Kind.FIRST_RANK, 3, 1), (Kind.PARENT, 1, 4), (Kind.OTHER_SILENT, 2, 1), (Kind.NOTICE, 1, 0)],
)
def test_what_is_allowed_after_a_loss_is_no_problem(kind: Kind, world: int, redone: int) -> None:
    """One step again after a loss, and those since the last checkpoint if nobody survives."""
    kill = Kill(kind=kind, world=world, steps=1, fraction=0.5)

    assert problems_of(kill, redone=redone, left_s=2.0, orphans=[]) == []


def test_the_table_counts_and_the_code_judges() -> None:
    """A line for each configuration; one problem, or one kill too few, makes the exit code 1."""
    result = Result(kill=KILL, code=75, redone=1, left_s=0.2, next_step_s=4.0)
    good = Tried(name="qlora", results=[result, result], runs=1)
    odd = Tried(name="nola", results=[result], differences=["another adapter"], runs=1)
    lines = table([good, odd])

    assert re.search(r"^qlora +2 SIGKILL of rank 0 +3 +2 +4\.0 s, at most 4\.0 +yes$", lines[1])
    assert lines[2].endswith("NO")
    assert exit_code([good], kills=2) == 0
    assert exit_code([good], kills=3) == 1
    assert exit_code([good, odd], kills=3) == 1
    assert exit_code([replace(good, results=[replace(result, problems=("late",))])], kills=1) == 1
    assert json.loads(json.dumps(odd.to_json()))["equal"] is False


def test_progress_counts_the_steps_of_this_start_only(tmp_path: Path) -> None:
    """Steps that an earlier start has logged count for nothing, and a torn line is no step."""

    def write(steps: int, **status: int | None) -> None:
        lines = [json.dumps({"step": step, "params": f"{step}"}) for step in range(1, steps + 1)]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9')
        (tmp_path / "status.json").write_text(json.dumps(status))

    write(6, resumes=1, resumed_from=None)
    began = Progress.of(tmp_path)
    before = began.steps_done()
    write(4, resumes=2, resumed_from=4)
    resumed = began.steps_done()
    write(5, resumes=2, resumed_from=4)

    assert (before, resumed, began.steps_done(), began.base()) == (0, 0, 1, 4)
    assert len(records(tmp_path)) == 5


def test_an_outcome_has_all_tensors_and_scores_of_a_run(tmp_path: Path) -> None:
    """Every safetensors file of the adapter counts, and the scores before and after."""
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_model.safetensors", "ranks.safetensors", "README.md"):
        (tmp_path / "adapter" / name).write_bytes(b"x")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "params": "a"}\n')
    for stage in ("before", "after"):
        (tmp_path / f"eval-{stage}.json").write_text('{"value": 0.5, "seconds": 1}')

    found = outcome(tmp_path)

    assert found.params == {1: "a"}
    assert set(found.adapter) == {"adapter_model.safetensors", "ranks.safetensors"}
    assert found.scores == {"before": {"value": 0.5}, "after": {"value": 0.5}}


def run_chaos(*arguments: str, timeout_s: float) -> str:
    """Run the harness in a process of its own and return what it printed."""
    ended = subprocess.run(
        [sys.executable, str(tiny.ROOT / "tests" / "chaos_group"), *arguments],
        cwd=tiny.ROOT,
        env=tiny.quiet_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.timeout(1800)  # a minute alone, minutes on a busy machine
def test_a_few_kills_of_groups_change_nothing() -> None:
    """A run killed with one, three and two ranks has every bit of a calm one by one process."""
    messages = run_chaos("--kills", "3", "--only", "qlora", timeout_s=1700)

    assert re.search(r"^qlora .* 1 2 3 .* yes$", messages, re.MULTILINE)
    assert "PROBLEM" not in messages


@pytest.mark.chaos
@pytest.mark.timeout(14400)
def test_fifty_kills_of_groups_change_nothing() -> None:
    """Fifty kills over six configurations and three world sizes leave every bit as it was."""
    messages = run_chaos(timeout_s=14000)

    assert re.search(r"50 kills over \d+ runs", messages)
    assert "PROBLEM" not in messages
