"""`qft run` with several machines that this computer plays: real trainers, SSH and evictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import make_project

from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Kind
from infra.run.nodes import node_of

TRAIN = {"steps": 120, "batch_size": 6, "micro_batch": 2}
CHECKPOINT = {"every": 20}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same training by one machine that nobody takes away."""
    project = make_project(
        tmp_path_factory.mktemp("alone"),
        train=TRAIN,
        checkpoint=CHECKPOINT,
        vm={"provider": "local"},
    )
    done = project.qft("run", "--json")
    assert done.returncode == 0, done.stderr
    return project


@pytest.mark.timeout(900)
def test_three_machines_of_which_one_is_evicted_give_the_bits_of_one(
    tmp_path: Path, alone: Any
) -> None:
    """The adapter and every loss are those of one machine; the bill is that of three."""
    project = make_project(
        tmp_path,
        train=TRAIN,
        checkpoint=CHECKPOINT,
        vm={"provider": "local", "nodes": 3, "rehearse_evictions": [30]},
    )

    done = project.qft("run", "--plain", "--json", timeout_s=800)

    assert done.returncode == 0, done.stderr
    assert project.tensors() == alone.tensors()
    assert project.losses() == alone.losses()
    events = project.events()
    assert {node_of(event) for event in events} == {0, 1, 2}
    state = fold(events)
    assert state.evictions >= 1
    assert state.deleted
    assert all(node.vm is None for node in state.nodes)
    groups = [event.data["group"] for event in events if event.kind is Kind.LAUNCH_INTENDED]
    assert max(len(one["members"]) for one in groups) == 3
    used = bill(state, events[-1].at_s)
    assert len(state.nodes) == 3
    assert used.usd == pytest.approx(sum(bill(one, 0.0).usd for one in state.nodes))
    receipt = json.loads((project.out / "receipt.json").read_text())
    assert sum(one["usd"] for one in receipt["nodes"]) == pytest.approx(used.usd, abs=1e-6)
    messages = done.stderr
    assert "copying data and model from node" in messages
    assert "not copied" not in messages
    assert project.processes() == []
