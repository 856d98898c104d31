"""A base install says what it lacks before anything is rented, and the cheap checks come first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import Project, make_project
from support.tiny import ROOT, make_run

from commands import audit, generate, merge, push
from commands.runs import extras
from commands.runs.config import load
from commands.runs.home import RunFolder
from commands.runs.session import _saved
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.run.journal import Journal, Kind
from trainer.eval_tables.text import TextEvalTable

EXTRAS = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "numpy"),
    *("huggingface_hub", "pyarrow", "sklearn", "sacrebleu", "tensorboard", "gguf", "sentencepiece"),
    "asyncssh",
)
"""The modules that a base install lacks: what `pyproject.toml` lists under `train` and `local`."""
BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def without(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return an environment whose Python finds no module of these names."""
    place = folder / "blocked"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(BLOCKER.format(names=names))
    return {"PYTHONPATH": str(place)}


def qft(project: Project, more: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run `qft` in a project, with more in its environment."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=project.folder,
        env={**project.environment(), **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that is in order."""
    return make_project(tmp_path_factory.mktemp("extras") / "project")


@pytest.mark.parametrize("words", [("run",), ("up", "--json"), ("train",), ("audit",)])
def test_a_base_install_says_so_first(
    project: Project, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Exit 2 names every package and what to type; no run began and no traceback is shown."""
    done = qft(project, without(tmp_path, EXTRAS), *words)

    assert done.returncode == 2, done.stderr
    assert "`torch` is not installed" in done.stderr
    assert ("`asyncssh` is not installed" in done.stderr) == (words != ("audit",))
    assert "install 'qft[" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.home / "runs" / "tiny" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        ("--help", 0, "First steps"),
        ("init new", 0, "note: training on this computer needs `asyncssh`, `torch`"),
        ("plan", 0, "warning: training on this computer needs `asyncssh`, `torch`"),
        ("doctor", 2, "FAIL  torch: is not installed"),
        ("ls", 0, "no run yet"),
        ("ls --all", 0, "no machine of ours"),
        ("down --all", 0, "nothing to release"),
        ("status", 2, "was not started yet"),
        ("data sentiment train.csv --out rows", 0, "rows/train.jsonl"),
    ],
)
def test_a_base_install_does_what_it_can(
    project: Project, tmp_path: Path, words: str, code: int, messages: str
) -> None:
    """What needs no extra works without one."""
    shutil.rmtree(project.folder / "new", ignore_errors=True)
    rows = [f"order {n} was late,{n % 2}\n" for n in range(60)]
    (project.folder / "train.csv").write_text("text,label\n" + "".join(rows))

    done = qft(project, without(tmp_path, EXTRAS), *words.split())

    assert done.returncode == code, done.stderr
    assert messages in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_elsewhere_needs_no_torch_here(project: Project) -> None:
    """Rented or at the end of an SSH line: no extra here; a quantised rehearsal needs more."""
    config = load(project.config).config
    rented = config.model_copy(update={"vm": config.vm.model_copy(update={"provider": "azure"})})
    method = config.method.model_copy(update={"kind": "qlora", "quant": "nf4"})
    quantised = config.model_copy(update={"method": method, "eval": "none"})

    assert extras.needed_here(rented) == ()
    assert {"asyncssh", "peft", "scikit-learn"} <= set(extras.needed_here(config))
    assert "sacrebleu" in extras.needed_here(
        config.model_copy(update={"eval": TextEvalTable(measures=["exact", "chrf"])})
    )
    assert "sacrebleu" not in extras.needed_here(config)
    assert "bitsandbytes" in extras.needed_here(quantised)
    assert "scikit-learn" not in extras.needed_here(quantised)


def fake(place: Path, name: str, *, version: str = "", body: str = "") -> None:
    """Put a package of that name into a folder."""
    (place / name).mkdir(parents=True)
    (place / name / "__init__.py").write_text(body)
    if version:
        info = place / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version", "body", "messages", "typed"),
    [
        ("torch", "", 'raise OSError("libcudart.so.13: cannot open")', "libcudart.so.13", "torch"),
        ("torch", "", "import nowhere_at_all", "nowhere_at_all", "--force-reinstall torch"),
        ("torch", "1.9.0", "", "1.9.0 is older than 2.9", "'qft[train]'"),
        ("peft", "0.1.0", "", "0.1.0 is older than 0.20", "'qft[train]'"),
        ("asyncssh", "1.0", "", "1.0 is older than 2.21", "'qft[local]'"),
        ("bitsandbytes", "0.50.2", "", "has no library for this computer", "bitsandbytes"),
    ],
)
def test_a_package_that_cannot_be_used_is_reported(  # noqa: PLR0917  (parameters of the cases)
    project: Project, tmp_path: Path, name: str, version: str, body: str, messages: str, typed: str
) -> None:
    """One that is broken, too old or without its library is refused before anything is rented."""
    fake(tmp_path / "path", name, version=version, body=body)
    content = yaml.safe_load(project.config.read_text())
    content["method"] = {"kind": "qlora", "r": 4, "alpha": 8}
    other = project.folder / f"{tmp_path.name}.yaml"
    other.write_text(yaml.safe_dump(content))

    done = qft(project, {"PYTHONPATH": str(tmp_path / "path")}, "run", other.name, "--json")

    output = json.loads(done.stdout)
    assert (done.returncode, output["exit_code"]) == (2, 2), done.stderr
    assert any(messages in problem for problem in output["problems"]), output
    assert typed in output["hint"]
    assert not (project.home / "runs" / "tiny" / "journal.jsonl").exists()


def test_what_could_be_loaded_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second or two of an import are spent once; a failure is looked at each time."""
    name = "loaded_by_a_test"
    fake(tmp_path / "path", name)
    monkeypatch.setattr(extras, "LOADED", (name,))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    module = tmp_path / "path" / name / "__init__.py"
    memory = tmp_path / "home" / "cache" / "loaded.json"

    assert extras.missing([name], tmp_path / "home") == []
    assert name in json.loads(memory.read_text())
    before = memory.stat().st_mtime_ns
    assert extras.missing([name], tmp_path / "home") == []
    assert memory.stat().st_mtime_ns == before
    module.write_text("raise ImportError('broken')")
    os.utime(module, ns=(time.time_ns(), time.time_ns() + 10**9))

    (lack,) = extras.missing([name], tmp_path / "home")
    assert "cannot be loaded: ImportError: broken" in str(lack)


def test_every_package_that_is_imported_is_one_of_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and least versions are those of the declaration, in a checkout and as installed."""
    here = extras._declared()
    monkeypatch.setattr(extras, "_root", lambda: tmp_path)
    installed = extras._declared()

    assert set(extras.REHEARSES) <= set(here)
    assert here["torch"] == ("train", (2, 9))
    assert here["asyncssh"][0] == "local"
    assert {name: installed[name] for name in extras.REHEARSES} == {
        name: here[name] for name in extras.REHEARSES
    }


def test_what_to_type_fits_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name where qft is installed, by folder in a checkout that is not."""
    lack = extras.Lack(package="asyncssh", extra="local", problem="is not installed")
    by_name = extras.remedy([lack])

    def none(_name: str) -> Any:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", none)

    assert "install 'qft[local]'" in by_name
    assert f"install -e '{ROOT}[local]'" in extras.remedy([lack])


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A run whose adapter is at home, and no tool that may be started."""
    made = make_project(tmp_path / "project")
    loaded = load(made.config)
    run = RunFolder(root=made.home / "runs" / "tiny")
    run.root.mkdir(parents=True)
    write_json(run.config, _saved(loaded, ()))
    Journal(run.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="tiny-1", name="tiny")
    (made.out / "adapter").mkdir(parents=True)
    (made.out / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    monkeypatch.setenv("QFT_HOME", str(made.home))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(made.folder)

    def loads(*_words: object, **_more: object) -> None:
        raise AssertionError("a tool was started")

    monkeypatch.setattr(subprocess, "run", loads)
    return made


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        (("txt=a",), "--field txt: the prompt's fields are text"),
        (("text=a", "mood=b"), "--field mood: the prompt's fields are text"),
        (("=a",), "the prompt's fields are text"),
        (("text",), "names no field"),
    ],
)
def test_an_unknown_field_is_reported_before_a_model_is_loaded(
    fetched: Project, fields: tuple[str, ...], messages: str
) -> None:
    """The fields of the prompt stand in run.yaml: no model is needed to compare them."""
    del fetched
    with pytest.raises(UsageError) as caught:
        generate.generate("tiny", generate.GenerateOptions(fields=fields), as_json=False)

    assert messages in caught.value.message


@pytest.mark.parametrize(
    ("repo", "token", "messages"),
    [
        ("me/model", "", "HF_TOKEN is not set"),
        ("me/model base/../x", "t", "cannot name a place"),
        ("me/model", "  ", "HF_TOKEN is not set"),
        ("me/my model", "t", "cannot name a place"),
        ("", "t", "cannot name a place"),
        ("a/b/c", "t", "cannot name a place"),
        ("https://huggingface.co/me/model", "t", "cannot name a place"),
        ("me/a--b", "t", "cannot name a place"),
        ("-me/model", "t", "cannot name a place"),
        ("me/" + "m" * 97, "t", "cannot name a place"),
    ],
)
def test_a_push_that_cannot_be_is_reported_at_once(
    fetched: Project, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, messages: str
) -> None:
    """No token, or a name that no hub takes: nothing is loaded, and nobody is asked."""
    del fetched
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError) as caught:
        push.push("tiny", push.PushOptions(repo=repo, merged=False, public=False), as_json=False)

    assert messages in caught.value.message


def test_a_push_with_a_base_that_is_no_hub_id_is_reported_at_once(fetched: Project) -> None:
    """What the card would name must be what a hub could have."""
    del fetched
    options = push.PushOptions(repo="me/model", merged=False, public=False, base="./phi")
    with pytest.raises(UsageError, match="is no hub id"):
        push.push("tiny", options, as_json=False)


def test_a_merge_without_room_or_with_a_broken_base_is_reported_at_once(
    fetched: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the weights and their files are known before any is loaded."""
    options = merge.MergeOptions()
    usage = shutil.disk_usage(fetched.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    monkeypatch.setattr(merge, "demand", lambda *_all: None)
    with pytest.raises(UsageError, match="GB free"):
        merge.merge("tiny", options, as_json=False)
    (fetched.folder / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be used") as caught:
        merge.merge("tiny", options, as_json=False)

    assert "model.safetensors: is empty" in caught.value.problems[0]


@pytest.mark.parametrize("page", ["nowhere/page.html", ".", "closed/page.html"])
def test_a_page_that_cannot_be_written_is_reported_before_the_rows_are_read(
    fetched: Project, page: str
) -> None:
    """`--html` into no folder, onto a folder, or without the right to write."""
    (fetched.folder / "closed").mkdir(mode=0o500)
    if page.startswith("closed") and os.access(fetched.folder / "closed", os.W_OK):
        (fetched.folder / "closed").rmdir()  # root may write anywhere: a file is in the way then
        (fetched.folder / "closed").write_text("")
    with pytest.raises(UsageError, match="--html"):
        audit.audit("run.yaml", html=page, as_json=False)


TOOL, TRAINER = ["trainer", "audit"], ["trainer", "train"]


@pytest.mark.parametrize(
    ("words", "package", "broken"),
    [
        (TOOL, "transformers", "raise AttributeError('module torch has no attribute _C2')"),
        (TRAINER, "peft", "raise ImportError('undefined symbol: _ZN2at')"),
        (TRAINER, "peft", "raise OSError('libcudart.so.13: cannot open shared object file')"),
    ],
    ids=["tool", "trainer", "trainer, a library"],
)
def test_a_package_that_cannot_be_loaded_is_a_sentence(
    tmp_path: Path, words: list[str], package: str, broken: str
) -> None:
    """Whatever it raises when it is imported, there is no traceback, and the exit code is 78."""
    run_dir = make_run(tmp_path / "run")
    (tmp_path / f"{package}.py").write_text(broken)

    done = subprocess.run(
        [sys.executable, "-P", "-m", *words, "--run-dir", str(run_dir)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 78, done.stderr
    assert "has one that cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
