"""Samples and what is measured of forgetting stand in the hours of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.memory_points import llama

from commands.runs.config import load
from commands.runs.planning.estimates import HERE, estimate_job
from commands.runs.planning.job_estimate import JobEstimate


@pytest.fixture(autouse=True)
def clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has never run anything, nor fetched a base."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def job(
    folder: Path, *, train: dict[str, Any], evaluation: dict[str, Any], card: str = "T4"
) -> JobEstimate:
    """Estimate a job on a base of 135 M that has 40 rows to learn and to score."""
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(llama(576, 1536, 30, 9, 3, 49152)))
    rows = "".join(json.dumps({"text": f"row {n}", "label": "good"}) + "\n" for n in range(40))
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text(rows)
    config = {
        "name": "hours",
        "vm": {"provider": "azure", "gpu": "T4", "max_price": 0.25},
        "model": {"id": "model"},
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "prompt": "{text}",
            "completion": "{label}",
        },
        "train": {"steps": 100, "max_length": 256, "threads": 2, **train},
        "eval": {"kind": "label", "labels": ["good", "bad"], **evaluation},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return estimate_job(load(folder / "run.yaml"), card)


def hours(made: JobEstimate, name: str) -> float:
    """The likely hours of one part."""
    return next(one.hours.likely for one in made.parts if one.name == name)


def test_samples_take_hours_by_how_often_they_are_taken(tmp_path: Path) -> None:
    """A run that is sampled six times spends three times as much on it as one sampled twice."""
    off = {"forgetting": False}
    once, often = (
        [
            hours(job(tmp_path / f"{every}-{n}", train=train | {"samples": n}, evaluation=off),
                  "train")
            for n in (0, 5)
        ]
        for every, train in ((None, {}), (20, {"validate_every": 20}))
    )  # fmt: skip

    assert once[1] > once[0]
    assert often[1] - often[0] == pytest.approx(3 * (once[1] - once[0]))


def test_what_a_model_forgets_takes_hours_where_it_is_measured(tmp_path: Path) -> None:
    """Both stages of scoring take longer; before training the base also writes its texts."""
    on, off = (
        job(tmp_path / str(value), train={}, evaluation={"forgetting": value})
        for value in ("auto", False)
    )
    before, after = (hours(on, name) - hours(off, name) for name in ("score before", "score after"))

    assert 0 < after < before
    assert before < 5 / 60


def test_a_processor_measures_it_only_on_request(tmp_path: Path) -> None:
    """On this computer the scoring is as long as without, unless run.yaml says otherwise."""
    auto, off, on = (
        hours(job(tmp_path / str(at), train={}, evaluation={"forgetting": value}, card=HERE),
              "score before")
        for at, value in enumerate(("auto", False, True))
    )  # fmt: skip

    assert auto == off < on
