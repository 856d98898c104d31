"""A plan takes its memory from the count, tells where the formula differs, and never waits long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.counted_steps import BASES
from support.tiny import make_config

from commands.runs.planning import counted_memory
from commands.runs.planning.counted_memory import CountedStep, counted, with_count
from trainer.config import TrainerConfig
from trainer.estimate.gpus import GPUS
from trainer.estimate.training import RowTokens, estimate_rows

PHI = BASES["phi-1_5"]
ROWS = RowTokens(longest=1024, usual=400.0)
T4 = GPUS["T4"]
STATIC = CountedStep(base=1_044_000_000, adapter=28_000_000, optimizer=57_000_000, peak=0)


def tables(tmp_path: Path, **train: Any) -> TrainerConfig:
    """Return the settings of a run of eight rows a step."""
    settings = make_config(
        tmp_path,
        tmp_path,
        method={"kind": "qlora"},
        train={"batch_size": 8, "gradient_checkpointing": True, **train},
    )
    return TrainerConfig.model_validate(settings)


def planned(
    config: TrainerConfig, peaks: Mapping[int, float] | None, sizes: list[int] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the formula's estimate, and the same with counted peaks (GB) by rows of a pass."""

    def count(request: dict[str, Any], micro_batch: int) -> CountedStep | None:
        assert request["tokens"] == 1024
        if sizes is not None:
            sizes.append(micro_batch)
        if peaks is None:
            return None
        peak = round(peaks.get(micro_batch, 1.2 + 1.9 * micro_batch) * 1e9)
        return CountedStep(**{**vars(STATIC), "peak": peak})

    found = estimate_rows(config, PHI, ROWS, gpu=T4)
    return found, with_count(
        found, config=PHI, tables=config, rows=ROWS, capability=(7, 5), count=count
    )


def test_the_counted_peak_stands_in_the_plan(tmp_path: Path) -> None:
    """What the model itself takes is the memory of the plan, and the formula's is named beside."""
    found, plan = planned(tables(tmp_path, micro_batch=1), {1: 5.0})

    assert plan["memory_counted"]
    assert plan["memory_bytes"]["allocated"] == 5e9
    assert 5e9 < plan["memory_bytes"]["reserved"] < T4.memory_bytes
    assert plan["memory_span"]["likely"] == pytest.approx(plan["memory_bytes"]["reserved"])
    formula = f"{found['memory_bytes']['allocated'] / 1e9:.1f} GB"
    assert plan["memory_disagreement"] == (
        f"memory: 5.0 GB were counted on the model itself, the formula says {formula}; "
        "the count is taken"
    )
    assert plan["fits"]


def test_where_both_agree_there_is_no_message(tmp_path: Path) -> None:
    """A difference of less than a twentieth is no news."""
    config = tables(tmp_path, micro_batch=1)
    peak = estimate_rows(config, PHI, ROWS, gpu=T4)["memory_bytes"]["allocated"] / 1e9
    _, plan = planned(config, {1: peak * 1.04})

    assert plan["memory_counted"]
    assert plan["memory_disagreement"] == ""


def test_fewer_rows_go_at_once_where_the_count_is_higher(tmp_path: Path) -> None:
    """With `auto` the largest pass whose counted need fits is found from two counts."""
    sizes: list[int] = []
    found, plan = planned(tables(tmp_path, micro_batch="auto"), {}, sizes)

    assert found["micro_batch"] == 8
    assert sizes[:2] == [8, 1]
    assert plan["fits"]
    assert plan["micro_batch"] == plan["largest_micro_batch"] == sizes[-1] < 8
    assert plan["memory_span"]["high"] <= T4.memory_bytes


def test_what_does_not_fit_as_counted_does_not_fit(tmp_path: Path) -> None:
    """A count above the card's memory says no, whatever the formula says."""
    for micro_batch in ("auto", 1):
        found, plan = planned(tables(tmp_path, micro_batch=micro_batch), {1: 40.0, 8: 90.0})

        assert found["fits"]
        assert not plan["fits"]
        assert plan["largest_micro_batch"] is None


def test_without_a_count_the_formula_stands(tmp_path: Path) -> None:
    """Where nothing can be counted, the estimate is the formula's to the last byte."""
    found, plan = planned(tables(tmp_path), None)

    assert plan == {**found, "memory_counted": False, "memory_disagreement": ""}


def test_a_count_is_remembered_and_so_is_one_that_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer counts once; what did not come in time is asked again only with more time."""
    limits: list[float] = []

    def program(_request: str, limit_s: float) -> dict[str, Any]:
        limits.append(limit_s)
        sizes = {"base": 1, "adapter": 2, "optimizer": 3, "passes": [{"peak": 9}]}
        return sizes if limit_s > 5 else {counted_memory.LATE: limit_s}

    monkeypatch.setenv("QFT_HOME", str(tmp_path))
    monkeypatch.setattr(counted_memory, "_count", program)
    answers = []
    for limit in ("0", "4", "4", "60", "60", "1"):
        monkeypatch.setenv(counted_memory.LIMIT_NAME, limit)
        counted_memory._remembered.cache_clear()  # as in another process
        answers.append(counted({"tokens": 8}, 1))

    step = CountedStep(base=1, adapter=2, optimizer=3, peak=9)
    assert answers == [None, None, None, step, step, step]
    assert limits == [4, 60]


def test_the_trainer_counts_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back is the count of `python -m trainer step-memory`; odd answers are None."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path))
    monkeypatch.setenv(counted_memory.LIMIT_NAME, "300")
    config = {**BASES["gpt2"], "n_embd": 64, "n_head": 4, "n_layer": 2}
    request = counted_memory.step_request(
        config, tables(tmp_path), RowTokens(longest=32, usual=32.0), capability=(7, 5)
    )
    step = counted(request, 2)

    assert step is not None
    assert step.peak > step.base > 50257 * 64 * 2
    assert counted({**request, "config": {"model_type": "nobody_knows"}}, 2) is None
