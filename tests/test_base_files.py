"""Pointers, web pages and cut files in the place of a base or of rows are told before renting."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import Project, make_project
from support.tiny import ROOT

from commands.runs import base_files
from commands.runs.config import check_data_and_model, load, require_weights
from commands.ui.errors import UsageError
from trainer.data.placeholder_files import describe_placeholder
from trainer.data.rows import read_rows
from trainer.errors import DataError

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 269060552\n"
)
OLD_LFS = b"version https://hawser.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 9\n"
ANNEX = b"/annex/objects/SHA256E-s269060552--" + b"4d" * 32 + b".safetensors\n"
PAGE = b"\n<!DOCTYPE html>\n<html lang=en><body>Sign in</body></html>\n"
WEIGHTS = "model.safetensors"


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
    """Which problems are told before anything is rented."""
    with pytest.raises(UsageError, match="nothing was rented") as caught:
        check_data_and_model(load(project.config))
    return caught.value.problems


def test_a_base_as_the_libraries_write_it_has_no_problem(whole: Project) -> None:
    """A whole base passes, and its size is that of its weights."""
    folder = whole.folder / "model"

    check_data_and_model(load(whole.config))
    require_weights(load(whole.config))

    assert base_files.faults(folder) == []
    assert base_files.weights_bytes(folder) == (folder / WEIGHTS).stat().st_size


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "this is a Git LFS pointer: fetch the file (`git lfs pull` in"),
        (LFS.replace(b"\n", b"\r\n"), "this is a Git LFS pointer"),
        (OLD_LFS, "this is a Git LFS pointer"),
        (ANNEX, "this is a git-annex pointer: fetch the file (`git annex get` in"),
        (PAGE, "this is a web page"),
        (b"\xef\xbb\xbf<HTML><head>", "this is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "this is an XML answer"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_named(
    project: Project, name: str, content: bytes, message: str
) -> None:
    """Weights, tokenizer and description: each is told with its name and what fetches it."""
    (project.folder / "model" / name).write_bytes(content)

    problems = problems_of(project)

    assert any(f"model.id: `model/{name}`: {message}" in problem for problem in problems), problems


def cut(path: Path, size: int) -> None:
    """Leave only the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


def header(length: int, table: object = None, *, tail: int = 0) -> bytes:
    """Bytes that begin as a safetensors file does."""
    text = b"" if table is None else json.dumps(table).encode()
    return struct.pack("<Q", length) + text + b"\0" * tail


TABLE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
LONG = len(json.dumps(TABLE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1234", "is cut off"),
        (header(1 << 20, TABLE, tail=8), "its header alone would have 1048576 bytes"),
        (header(LONG, TABLE, tail=7), f"{LONG + 15} of {LONG + 16} bytes are here"),
        (header(LONG, TABLE, tail=9), "1 bytes follow its last tensor"),
        (header(1 << 62, TABLE), "is no safetensors file: it begins with"),
        (b"PK\x03\x04" + b"\0" * 64, "no safetensors file"),
        (header(12, tail=12), "its header cannot be read"),
        (header(4000, tail=0) + b"[" * 4000, "its header cannot be read"),
        (header(2, [], tail=0), "its header cannot be read"),
        (header(17, {"a": {"shape": 1}}, tail=0), "its header cannot be read"),
        (header(len(b'{"a": 7}'), {"a": 7}), "its header cannot be read"),
        (
            header(
                len(json.dumps({"a": {"data_offsets": [0, "x"]}})),
                {"a": {"data_offsets": [0, "x"]}},
            ),
            "its header cannot be read",
        ),
    ],
)
def test_cut_or_foreign_weights_are_recognised_by_their_own_lengths(
    project: Project, content: bytes, message: str
) -> None:
    """A file of tensors says itself how long it is; no library is needed to compare."""
    (project.folder / "model" / WEIGHTS).write_bytes(content)

    (problem,) = problems_of(project)

    assert problem.startswith(f"model.id: `model/{WEIGHTS}`: ")
    assert message in problem


def test_a_base_that_was_cut_in_its_last_byte_is_named(project: Project) -> None:
    """Real weights that lack one byte are not whole."""
    path = project.folder / "model" / WEIGHTS
    size = path.stat().st_size
    cut(path, size - 1)

    assert f"{size - 1} of {size} bytes are here" in problems_of(project)[0]


def sharded(project: Project, names: list[str], *, without: tuple[str, ...] = ()) -> Path:
    """Spread the weights over files that an index lists, but for some; return the folder."""
    folder = project.folder / "model"
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    for name in names:
        if name not in without:
            (folder / name).write_bytes(content)
    table = {"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(names)}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(table))
    return folder


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_shards_that_an_index_lists_are_looked_at(project: Project) -> None:
    """One that is missing, cut, a pointer, or a link to nowhere is named; whole ones are none."""
    folder = sharded(project, SHARDS)
    assert base_files.faults(folder) == []
    assert base_files.weights_bytes(folder) == 2 * (folder / SHARDS[0]).stat().st_size

    (folder / SHARDS[1]).unlink()
    assert f"`model/{SHARDS[1]}`: is not there: fetch the file" in problems_of(project)[0]
    (folder / f"{SHARDS[1]}.dvc").write_text("outs:\n- md5: 4d4d\n  path: model\n")
    assert (
        f"only its DVC pointer `{SHARDS[1]}.dvc` is here: fetch the file" in problems_of(project)[0]
    )
    (folder / SHARDS[1]).symlink_to("../../.git/annex/objects/xy/SHA256E-s9--4d")
    assert "this is a git-annex link to what is not here" in problems_of(project)[0]
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).symlink_to("../../blobs/4d4d")
    assert "this is a link to `../../blobs/4d4d`, which is not there" in problems_of(project)[0]
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).write_bytes(LFS)
    assert "this is a Git LFS pointer" in problems_of(project)[0]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"weight_map": 7}', b""])
def test_an_index_that_cannot_be_read_ends_in_a_sentence(project: Project, content: bytes) -> None:
    """Whatever the index holds, it is told or passed over, without a traceback."""
    folder = sharded(project, SHARDS)
    (folder / f"{WEIGHTS}.index.json").write_bytes(content)

    assert all(isinstance(problem, str) for problem in base_files.faults(folder))


def test_an_index_that_leads_outside_is_refused(project: Project) -> None:
    """A listed name is one of a file in the folder."""
    sharded(project, ["../outside.safetensors"])

    assert "lies outside of the model" in problems_of(project)[0]


def test_what_nobody_loads_may_be_a_pointer(project: Project) -> None:
    """Other programs' copies, which are not sent either, keep nobody from training."""
    for name in ("model.gguf", "pytorch_model.bin", "README.md", "tf_model.h5"):
        (project.folder / "model" / name).write_bytes(LFS)

    check_data_and_model(load(project.config))


def test_a_folder_without_weights_is_refused_where_a_machine_would_be_rented(
    project: Project,
) -> None:
    """The description alone is enough for a forecast, and not for a training."""
    (project.folder / "model" / WEIGHTS).unlink()

    check_data_and_model(load(project.config))
    with pytest.raises(UsageError, match="holds no weights; nothing was rented"):
        require_weights(load(project.config))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json", "rows.parquet"])
def test_rows_that_are_a_pointer_are_recognised(tmp_path: Path, name: str) -> None:
    """In every format, and for one whose file DVC has not fetched."""
    path = tmp_path / name
    path.write_bytes(LFS)
    with pytest.raises(DataError, match=r"this is a Git LFS pointer: fetch the file"):
        read_rows(path)
    path.unlink()
    (tmp_path / f"{name}.dvc").write_text("outs:\n")
    with pytest.raises(DataError, match=r"DVC pointer .* fetch the file \(`dvc pull`"):
        read_rows(path)


def test_rows_that_only_mention_a_pointer_are_rows(tmp_path: Path) -> None:
    """What begins otherwise is the user's own text."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "version https://git-lfs.github.com/spec/v1"}\n')

    assert describe_placeholder(path) == ""
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize("words", [("run",), ("up", "--json"), ("plan",)])
def test_a_pointer_ends_every_command_with_2_and_no_run_begins(
    project: Project, words: tuple[str, ...]
) -> None:
    """The door says it in words, before a machine is asked for."""
    (project.folder / "model" / WEIGHTS).write_bytes(LFS)

    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "this is a Git LFS pointer: fetch the file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.home / "runs" / "tiny" / "journal.jsonl").exists()
