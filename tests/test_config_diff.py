"""A run.yaml that was changed between two commands is honoured, or refused with nothing lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.runs import Project, make_project

from commands.runs import config_diff, session
from commands.runs.all_providers import providers_to_ask
from commands.runs.config import load
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, run_folder
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.run.journal import Journal, Kind


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that is in order."""
    return make_project(tmp_path / "project")


def test_a_later_version_with_more_fields_sees_no_change(project: Project) -> None:
    """What a run was started with may lack fields of today: they had today's defaults."""
    loaded = load(project.config)
    old = loaded.config.model_dump(mode="json")
    del old["train"]["seed"]

    assert config_diff.changes(loaded, {"config": old}, ()) == {}


def test_whoever_follows_a_run_learns_that_its_config_was_changed(
    project: Project, tmp_path: Path
) -> None:
    """What is followed trains with what it was started with; money may change without a word."""
    loaded, folder = load(project.config), RunFolder(root=tmp_path)
    write_json(folder.config, session._saved(loaded, ()))
    text = project.config.read_text()

    project.config.write_text(text.replace("usd: 1.0", "usd: 2.0"))
    cheaper = config_diff.is_changed(load(project.config), folder)
    project.config.write_text(text.replace("steps: 250", "steps: 260"))
    longer = config_diff.is_changed(load(project.config), folder)

    assert (cheaper, longer) == (False, True)


def test_rows_count_by_what_they_are_and_not_by_their_name(project: Project) -> None:
    """A renamed file of the same rows is no change; edited rows under the same name are one."""
    loaded = load(project.config)
    saved = session._saved(loaded, ())
    rows = project.folder / "train.jsonl"
    rows.rename(project.folder / "rows.jsonl")
    text = project.config.read_text().replace("id: model", "id: ./model")
    project.config.write_text(text.replace("train: train.jsonl", "train: rows.jsonl"))

    assert config_diff.changes(load(project.config), saved, ()) == {}

    with (project.folder / "rows.jsonl").open("a") as file:
        file.write('{"text": "late", "mood": "neutral"}\n')
    with pytest.raises(UsageError) as caught:
        config_diff.changes(load(project.config), saved, ())
    (message,) = caught.value.problems
    assert message.startswith("data.train: 'train.jsonl (sha256 ")
    assert "became 'rows.jsonl (sha256 " in message
    assert message.endswith("(this can never change)")
    assert "--allow-change" not in caught.value.hint


@pytest.mark.parametrize("key", ["method.r", "data.train", "stepz", "train"])
def test_what_can_never_change_is_refused_before_a_trainer_is_stopped(key: str) -> None:
    """The trainer would refuse it, on the machine, after it was stopped for that."""
    with pytest.raises(UsageError, match="nothing was stopped or sent") as caught:
        config_diff.keys_for_trainer(["train.lr", key])
    assert caught.value.problems[0].startswith(f"{key}: this can never change; what may: ")


def test_what_was_allowed_once_stays_allowed_until_a_checkpoint_knows_it() -> None:
    """The trainer may start from a checkpoint of before; where files lie it does not ask about."""
    first = {"allowed": ["train.lr"]}

    assert config_diff.remembered(first, ("model.id",)) == ("model.id", "train.lr")
    assert config_diff.keys_for_trainer(("model.id", "checkpoint.every", "train.lr")) == (
        "train.lr",
    )


def test_a_damaged_record_of_one_run_hides_no_machine_of_another(tmp_path: Path) -> None:
    """`qft ls --all` and `qft down --all` look everywhere else; the run itself is told plainly."""
    folder = run_folder(tmp_path, "tiny")
    folder.root.mkdir(parents=True)
    Journal(folder.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="tiny-1", name="tiny")
    folder.config.write_text("{torn")

    assert [one.name for one in providers_to_ask(tmp_path)] == ["local"]
    with pytest.raises(UsageError, match="damaged config") as caught:
        reopen(folder)
    assert "`qft down --all` work without it" in caught.value.hint
