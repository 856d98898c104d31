"""What a model may be called on a hub is one rule, for the laptop, the trainer and the card."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not declared
from hypothesis import given
from hypothesis import strategies as st

from commands.runs.config import check_data_and_model, load
from commands.ui.errors import UsageError
from trainer.config import ModelTable
from trainer.errors import ConfigError
from trainer.hub import is_hub_id
from trainer.model import find_source

IDS = ("gpt2", "openai-community/gpt2", "microsoft/phi-1_5", "a", "owner/v1.2", "_x/y_")
NO_IDS = (
    *("", ".", "..", "./model", "../model", "~/model", "/srv/model", "a/b/c", "owner/", "/name"),
    *("a\\b", "my model", "a--b", "a..b", "x.git", "-a/b", "a/b-", "n" * 97, "gpt2\n", "ü/x"),
)
RUN = """name: {name}
vm: {{provider: local}}
model: {{id: '{model}'}}
data: {{train: rows.jsonl, prompt: "{{text}}", completion: " {{label}}"}}
"""


@pytest.mark.parametrize("name", IDS)
def test_an_owner_is_not_needed(name: str) -> None:
    """`gpt2` is as good an id as `openai-community/gpt2`."""
    assert is_hub_id(name)


@pytest.mark.parametrize("name", NO_IDS)
def test_what_no_hub_takes_is_no_id(name: str) -> None:
    """Paths, spaces, doubled signs and too long names are none."""
    assert not is_hub_id(name)


@given(st.text(alphabet="aZ0_-./ ", max_size=12) | st.text(alphabet="a", min_size=90, max_size=99))
def test_the_rule_is_that_of_the_hubs_library(name: str) -> None:
    """Whatever is asked, the library that would be asked next answers the same."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_hub_id(name)
    else:
        assert is_hub_id(name)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_the_trainer_asks_the_hub_for_an_id(tmp_path: Path, name: str) -> None:
    """With no directory of that name the model comes from the hub, else from the directory."""
    from_hub = find_source(ModelTable(id=name), tmp_path)
    (tmp_path / name).mkdir(parents=True)
    from_disk = find_source(ModelTable(id=name), tmp_path)

    assert (from_hub.name, from_hub.local) == (name, False)
    assert (from_disk.name, from_disk.local) == (str(tmp_path / name), True)


@pytest.mark.parametrize("name", ["./gpt2", "models/of/mine", "my model", "~/no-such-folder"])
def test_the_trainer_refuses_a_folder_that_is_not_there(tmp_path: Path, name: str) -> None:
    """What can be no id was meant as a path, and no hub is asked for it."""
    with pytest.raises(ConfigError, match="there is no directory"):
        find_source(ModelTable(id=name), tmp_path)


def faults(folder: Path, model: str) -> list[str]:
    """What is wrong with a run of this model beside a directory called `model`."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    run = folder / "run.yaml"
    run.write_text(RUN.format(name="x", model=model), encoding="utf-8")
    try:
        check_data_and_model(load(run))
    except UsageError as error:
        return [*error.problems, error.message]
    return []


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_plan_takes_an_id_with_and_without_an_owner(tmp_path: Path, name: str) -> None:
    """Both are the hub's business, and nothing is asked of the laptop's disk."""
    assert faults(tmp_path, name) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./gpt2", "there is no directory `./gpt2` beside run.yaml, and a hub id reads"),
        ("my model", "there is no directory `my model` beside run.yaml, and a hub id reads"),
        ("modell", "there is no directory `modell` beside run.yaml; did you mean `model`?"),
    ],
)
def test_a_plan_refuses_a_folder_that_is_not_there(tmp_path: Path, name: str, words: str) -> None:
    """A path is named as missing, and a slip in a directory's name gets the right one."""
    assert any(words in problem for problem in faults(tmp_path, name))
