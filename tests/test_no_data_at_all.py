"""Pointers and errors in the place of rows, tokenizers, weights and adapters are named at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.runs import Project, make_project

from commands.runs.config import check_data_and_model, load
from commands.ui.errors import UsageError
from trainer.adapters.settings import load_tensors, read_settings
from trainer.errors import ConfigError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 91\n"
POINTER = "this is a Git LFS pointer: fetch the file (`git lfs pull`"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose base was written by the libraries themselves."""
    return make_project(tmp_path_factory.mktemp("base") / "project")


@pytest.fixture
def project(whole: Project, tmp_path: Path) -> Project:
    """A copy of it to spoil."""
    shutil.copytree(whole.folder, tmp_path / "project")
    return Project(folder=tmp_path / "project")


def problems_of(project: Project) -> list[str]:
    """Return what is wrong before anything is rented."""
    with pytest.raises(UsageError, match="nothing was rented") as caught:
        check_data_and_model(load(project.config))
    return caught.value.problems


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "spiece.model", "merges.txt", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, POINTER), (b"Entry not found", "this is a server's answer that was saved")],
)
def test_a_tokenizer_that_is_none_is_named(
    project: Project, name: str, content: bytes, message: str
) -> None:
    """A vocabulary may be a pointer, too (transformers#13401, simpletransformers#873)."""
    (project.folder / "model" / name).write_bytes(content)

    (problem,) = problems_of(project)
    assert problem.startswith(f"model.id: `model/{name}`: {message}")


def test_an_adapter_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    """An adapter that was cloned without its files says so (ProcessPainter#4)."""
    (tmp_path / "adapter_config.json").write_bytes(LFS)
    (tmp_path / "adapter_model.safetensors").write_bytes(LFS)

    with pytest.raises(ConfigError, match=r"adapter_config\.json: this is a Git LFS pointer"):
        read_settings(tmp_path)
    with pytest.raises(ConfigError, match="safetensors: this is a Git LFS pointer"):
        load_tensors(tmp_path / "adapter_model.safetensors")


def test_rows_that_are_refused_come_with_how_they_were_read(project: Project) -> None:
    """An answer that is NaN is empty, and why is said beside it."""
    lines = ['{"text": "a", "mood": NaN}', '{"text": "b", "mood": "neutral"}']
    (project.folder / "train.jsonl").write_text("\n".join(lines))

    problems = problems_of(project)
    assert "train.jsonl:1: the answer to learn is empty" in problems[0]
    assert problems[1].endswith("`mood`: NaN or an infinity is read as null (row 1)")


def test_a_table_without_names_is_no_misspelt_field(project: Project) -> None:
    """Where values stand in the place of names, the error of every row has its cause below."""
    (project.folder / "rows.csv").write_text(
        "It is fine today,neutral\nSo sad it is,negative\n" * 4
    )
    text = project.config.read_text().replace("train.jsonl", "rows.csv")
    project.config.write_text(text)

    problems = problems_of(project)
    assert "no field `text` (the row has `It is fine today`, `neutral`)" in problems[0]
    assert "the first line seems to hold values ('It is fine today', 'neutral')" in problems[1]
