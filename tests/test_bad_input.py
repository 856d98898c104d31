"""Bad input gets a clear message, the documented exit code, and leaves nothing half-made."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import Project, json_of, make_project
from support.tiny import ROOT

from commands.generate import GenerateOptions
from commands.runs.config import check_data_and_model, load
from commands.runs.home import check_name
from commands.runs.request import RunRequest
from commands.runs.session import open_session
from commands.ui.console import PlainConsole
from commands.ui.errors import UsageError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that is in order."""
    return make_project(tmp_path / "project")


def rewrite(project: Project, **tables: Any) -> None:
    """Change tables of its run.yaml."""
    config = yaml.safe_load(project.config.read_text())
    for table, fields in tables.items():
        config[table] = {**config.get(table, {}), **fields} if isinstance(fields, dict) else fields
    project.config.write_text(yaml.safe_dump(config))


def refused(project: Project) -> str:
    """What a person reads about this project's config or files."""
    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(project.config))
    return "\n".join([caught.value.message, *caught.value.problems, caught.value.hint])


def test_every_error_of_a_config_is_printed_at_once(project: Project) -> None:
    """Unknown keys with the nearest known one, wrong types and missing tables, in one go."""
    rewrite(
        project,
        vm={"max_prise": 0.2, "gpu": 4},
        train={"stepps": 3, "lr": "fast"},
        budget={"usd": -1},
        modle={"id": "x"},
    )

    message = refused(project)

    assert "vm.max_prise: unknown key; did you mean `max_price`?" in message
    assert "train.stepps: unknown key; did you mean `steps`?" in message
    assert "modle: unknown key; did you mean `model`?" in message
    assert "vm.gpu: " in message
    assert "train.lr: " in message
    assert "train.lr: `fast` is no number" in message
    assert "budget.usd: " in message
    assert "6 faults" in message


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "", "UPPER", "-x", "x" * 31, "x y"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    """A run's name becomes folders and cloud names, so only plain ones pass."""
    with pytest.raises(UsageError, match="cannot name a run"):
        check_name(name)


def test_a_missing_data_file_is_named(project: Project) -> None:
    """A file that is not there is told with its path."""
    (project.folder / "train.jsonl").unlink()

    assert "train.jsonl" in refused(project)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.jsonl"),
        (b'{"text": "\xff", "mood": "x"}\n', "UTF-8"),
        (b'{"text": "a"}\n', "mood"),
        (b"not json\n", "train.jsonl:1"),
    ],
    ids=["empty", "not UTF-8", "a field is missing", "not JSON"],
)
def test_unusable_rows_are_refused_before_anything_is_rented(
    project: Project, content: bytes, message: str
) -> None:
    """Empty, undecodable or incomplete data is refused on this computer, with file and row."""
    (project.folder / "train.jsonl").write_bytes(content)

    assert message in refused(project)


def test_a_label_outside_the_list_is_refused_before_anything_is_rented(project: Project) -> None:
    """Every such row of both files is named, whether the label is a completion or a last turn."""
    rewrite(project, eval={"kind": "label", "labels": ["good", "bad"]}, data={"eval": "eval.jsonl"})
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "dunno"}]
    row = json.dumps({"text": "a", "mood": "dunno", "talk": conversation})
    for name in ("train", "eval"):
        (project.folder / f"{name}.jsonl").write_text(f"{row}\n", encoding="utf-8")
    message = refused(project)

    assert "train.jsonl:1: 'dunno' is not among the labels (good, bad)" in message
    assert "eval.jsonl:1: 'dunno' is not among the labels (good, bad)" in message
    rewrite(project, data={"messages": "talk", "prompt": "", "completion": ""})
    assert refused(project) == message


def test_conversations_for_an_encoder_decoder_are_refused_before_anything_is_rented(
    project: Project,
) -> None:
    """Its own config.json says what it is, and a broken conversation is named with its row."""
    described = project.folder / "model" / "config.json"
    described.write_text('{"is_encoder_decoder": true}', encoding="utf-8")
    (project.folder / "train.jsonl").write_text('{"talk": []}\n', encoding="utf-8")
    rewrite(project, data={"messages": "talk", "prompt": "", "completion": ""})
    message = refused(project)

    assert "data.messages: `model` is an encoder-decoder, which reads a prompt" in message
    assert "train.jsonl:1: the conversation is no list of messages" in message


def test_a_model_directory_that_is_not_there_is_refused(project: Project) -> None:
    """A base model that is neither a directory nor a hub id is refused, with both readings."""
    rewrite(project, model={"id": "modell"})

    message = refused(project)
    assert "no directory `modell`" in message
    assert "owner/name" in message


def test_a_step_that_never_comes_cannot_be_rehearsed(project: Project) -> None:
    """An eviction asked for after the last step is a mistake, not a silent nothing."""
    rewrite(project, vm={"rehearse_evictions": [9999]})

    assert "step 9999 never comes" in refused(project)


def test_a_home_that_no_machine_can_live_in_is_refused(project: Project) -> None:
    """With bytes in its path that are no UTF-8, nothing is made there, and the way out is told."""
    odd = os.fsdecode(os.fsencode(project.folder) + b"/h\xff")

    run, doctor = (
        subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), command],
            cwd=project.folder,
            env=project.environment() | {"QFT_HOME": odd},
            capture_output=True,
            text=True,
            check=False,
        )
        for command in ("run", "doctor")
    )

    assert (run.returncode, doctor.returncode) == (2, 2)
    assert "that path is not UTF-8\n\nhint: `export QFT_HOME=" in run.stderr
    assert "Traceback" not in run.stderr + doctor.stderr
    assert "FAIL  machines here: " in doctor.stdout
    assert not (Path(odd) / "runs").exists()


@pytest.mark.parametrize("taken", ["out", "out/tiny"])
def test_a_place_of_results_that_is_taken_is_refused_before_anything_is_rented(
    project: Project, tmp_path: Path, taken: str
) -> None:
    """A file where `out` has to be used to be found out after the training."""
    file = project.folder / taken
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    console = PlainConsole(io.StringIO(), simulated=True, clock=time.monotonic)
    request = RunRequest(loaded=load(project.config), home=tmp_path / "home", console=console)

    with pytest.raises(UsageError, match="nothing was rented") as caught, open_session(request):
        pass

    assert f"`{file}` is in the way" in caught.value.message
    assert not (tmp_path / "home").exists()


def test_a_refusal_exits_2_and_leaves_nothing(project: Project) -> None:
    """The command line prints the faults without a traceback, exits 2, and makes no run."""
    rewrite(project, train={"stepps": 3})

    done = project.qft("run")

    assert done.returncode == 2
    assert "did you mean `steps`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.home / "runs").exists()


def test_a_completion_that_is_too_long_exits_2_and_leaves_no_machine(project: Project) -> None:
    """What only the tokenizer can tell ends the run on the machine, with the row in the message."""
    rewrite(project, train={"max_length": 8})

    done = project.qft("run")

    assert done.returncode == 2, done.stderr
    assert "train.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    assert json_of(project.qft("ls", "--all", "--json")) == []


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("down tiny --all --delete", "error: `tiny` is one run, and `--all` is every machine"),
        ("down --provider local", "hint: write `--all --provider local`"),
        ("ls --provider local", "hint: write `--all --provider local`"),
    ],
)
def test_words_that_mean_more_than_one_thing_release_nothing(
    project: Project, words: str, printed: str
) -> None:
    """A name beside `--all`, or a provider without it, is refused instead of half obeyed."""
    done = project.qft(*words.split())

    assert done.returncode == 2
    assert printed in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(fields=("text=a",), prompt="b"),
        GenerateOptions(prompt="", chat=True),
        GenerateOptions(fields=("text=a",), chat=True),
    ],
)
def test_two_questions_at_once_are_refused(options: GenerateOptions) -> None:
    """A field that a ready prompt would leave unused is told instead of dropped."""
    with pytest.raises(UsageError, match="are different questions"):
        _ = options.flags


def test_unknown_commands_and_runs_exit_2(project: Project) -> None:
    """A misspelt command or run is a usage error with a hint, also as JSON."""
    command = project.qft("rum")
    run = project.qft("status", "nobody", "--json")

    assert (command.returncode, run.returncode) == (2, 2)
    assert "Did you mean 'run'?" in command.stderr
    assert "no run `nobody`" in json_of(run)["error"]


def test_a_changed_config_refuses_to_resume_with_the_difference(project: Project) -> None:
    """Half a run of each config would be no experiment; the difference is printed."""
    assert project.qft("up").returncode == 0
    try:
        rewrite(project, train={"lr": 0.5})

        done = project.qft("train")

        assert done.returncode == 2
        assert "train.lr: 0.01 became 0.5" in done.stderr
    finally:
        project.tidy()
