"""General rows of the user's own are checked here, sent along, and part of what a score is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.runs import Project, make_project

from commands.runs import config_diff, session
from commands.runs.config import check_data_and_model, load
from commands.runs.payload import build_payload
from commands.ui.errors import UsageError
from trainer.config import TrainerConfig
from trainer.rundir.fingerprint import compare, flatten_config
from trainer.rundir.layout import data_facts, scoring_facts, training_facts
from trainer.scoring.forgetting import shipped

GENERAL = {"general": "own/general.txt"}


def project_with(folder: Path, text: str = "Words of my own.\n") -> Project:
    """Lay out a project whose run compares a text of the user's."""
    made = make_project(folder, eval=GENERAL)
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own" / "general.txt").write_text(text)
    return made


def test_the_file_goes_to_the_machine_and_the_config_names_it_there(tmp_path: Path) -> None:
    """It is sent beside the rows, and the trainer finds and hashes it from its run directory."""
    loaded = load(project_with(tmp_path / "project").config)
    payload = build_payload(loaded, tmp_path / "sent" / "run")
    data = tmp_path / "sent" / "data"
    data.mkdir()
    for name, path in payload.data.items():
        (data / name).write_bytes(path.read_bytes())
    config = TrainerConfig.model_validate(json.loads(payload.config.read_text()))
    inputs = data_facts(config, tmp_path / "sent" / "run")

    assert set(payload.data) == {"train.jsonl", "eval.jsonl", "general.txt"}
    assert config.scored is not None
    assert config.scored.general == "../data/general.txt"
    assert inputs["eval.general"] == config_diff.digests(loaded)["eval.general"]


def test_what_is_shipped_goes_to_the_machine_with_the_trainer(tmp_path: Path) -> None:
    """Questions and openings lie in the folder that is sent as the trainer's code."""
    payload = build_payload(load(project_with(tmp_path).config), tmp_path / "sent")

    for path in (shipped.QUESTIONS, shipped.OPENINGS):
        assert path.is_relative_to(payload.trainer)
        assert path.is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("general.txt", None, "eval.general: "),
        ("general.txt", " ", "the file is empty"),
        ("general.jsonl", '{"question": "x"}\n', "`text`, `mood`), or a column `text`"),
        ("general.jsonl", "{torn\n", "eval.general: "),
        ("general.docx", "x", "is not a format qft reads"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_renting(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """The message names the key and the file."""
    made = make_project(tmp_path, eval={"general": name})
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(made.config))
    (problem,) = caught.value.problems
    assert message in problem
    assert name in problem


def test_another_text_is_another_score_and_the_same_training(tmp_path: Path) -> None:
    """Its contents decide about the score, not about the adapter, and a new place about neither."""
    made = project_with(tmp_path)
    loaded = load(made.config)
    saved = session._saved(loaded, ())
    tables = loaded.config.trainer_tables
    config = TrainerConfig.model_validate(tables)
    facts = {"data.train": "a", "data.eval": "b"}
    one, other = ({**facts, "eval.general": digest} for digest in "cd")

    assert training_facts(config, one) == training_facts(config, other)
    assert scoring_facts("before", config, one) != scoring_facts("before", config, other)
    old, new = ({"config": flatten_config(config), "data": data} for data in (one, other))
    assert compare(old, new, allowed=["eval.general"]).inexact == ()

    (tmp_path / "own" / "general.txt").rename(tmp_path / "moved.txt")
    made.config.write_text(made.config.read_text().replace("own/general.txt", "moved.txt"))
    assert config_diff.changes(load(made.config), saved, ()) == {}
    (tmp_path / "moved.txt").write_text("Other words.\n")
    with pytest.raises(UsageError) as caught:
        config_diff.changes(load(made.config), saved, ())
    assert caught.value.problems[0].startswith("eval.general: ")


def test_another_number_of_samples_is_no_change_of_a_run(tmp_path: Path) -> None:
    """What is shown of a training is no part of it."""
    saved = session._saved(load(make_project(tmp_path).config), ())
    other = load(make_project(tmp_path, train={"samples": 2}).config)

    assert other.config.train.samples == 2
    assert config_diff.changes(other, saved, ()) == {}
