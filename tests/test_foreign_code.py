"""Nothing that a machine made, and nothing that lies beside run.yaml, is executed as a module.

The machine here is a real OpenSSH server whose interpreter trains honestly and then plants modules
among the results; the tools are then used where the results lie.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import support.hub as hubs
from support.planted import NAMES, plant
from support.runs import Project, make_project
from support.sshd import serve

from commands.runs.python_program import argv_of, environment_of
from commands.ui.entry_point import without_current_folder

STEPS = 4
TYPE = """#!/bin/sh
case " $* " in
*" trainer train "*)
  "{real}" "$@"; code=$?
  "{real}" -I "{planter}" ../run
  exit $code ;;
esac
exec "{real}" "$@"
"""
PLANTER = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.planted import plant
run = Path(sys.argv[1])
marker = Path({marker!r})
for folder in (run, run / "adapter", run / "tb", run / "trainer", run / "torch"):
    plant(folder, marker)
(run / "adapter" / "adapter_model.bin").write_bytes(b"\\x80\\x04.")
(run / "nola.json").write_text("{{}}")
(run / "adapter" / "nola.json").write_text("{{}}")
(run / "Metrics.jsonl").write_text("x")
(run / "eval-after.json.py").write_text("x")
(run / "passwd").symlink_to("/etc/passwd")
os.mkfifo(run / "pipe")
(run / "line\\nbreak").write_text("x")
"""


@dataclass(frozen=True)
class Fetched:
    """A project whose results came from a machine that planted something in them."""

    project: Project
    printed: str
    marker: Path


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """Run the whole main job on such a machine, and plant the same at home."""
    place = tmp_path_factory.mktemp("foreign")
    marker, python, planter = place / "executed", place / "python3", place / "planter"
    planter.write_text(PLANTER.format(tests=str(Path(__file__).parent), marker=str(marker)))
    python.write_text(TYPE.format(real=sys.executable, planter=planter))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with serve(place / "server") as server:
        ssh = {
            "host": "127.0.0.1",
            "port": server.port,
            "user": server.user,
            "key": str(server.client_key),
            "host_key": server.host_key,
            "gpu": False,
            "python": str(python),
        }
        vm = {"provider": "ssh", "ssh": ssh, "max_price": None}
        project = make_project(
            place / "project", vm=vm, train={"steps": STEPS}, checkpoint={"every": 2}
        )
        plant(project.folder, marker)
        done = project.qft("run")
    assert done.returncode == 0, done.stderr
    return Fetched(project=project, printed=done.stderr, marker=marker)


def test_only_what_the_contract_names_comes_home(fetched: Fetched) -> None:
    """Neither planted modules nor links, pipes, pickles or look-alikes come; it is said once."""
    out = fetched.project.out
    found = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    curves = {path for path in found if path.startswith("tb/events.out.tfevents.")}

    assert found - curves == {
        *("metrics.jsonl", "status.json", "eval-before.json", "eval-after.json"),
        *("receipt.json", "trainer.log", "memory.json", "samples.jsonl"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/qft.json"),
    }
    assert len(curves) == 1
    assert "files that are no results (" in fetched.printed
    assert fetched.printed.count("stayed on the machine") == 1
    assert not fetched.marker.exists()


HEAVY = {
    "generate": ["generate", "tiny", "--prompt", "the sky", "--tokens", "1"],
    "eval": ["eval", "tiny", "--again"],
    "verify": ["verify", "tiny", "--steps", "1"],
    "merge": ["merge", "tiny", "--compare", "0"],
    "export": ["export", "tiny"],
    "report": ["report", "tiny"],
    "audit": ["audit", "tiny"],
    "status": ["status", "tiny"],
    "logs": ["logs", "tiny"],
    "plan": ["plan", "tiny"],
    "ls": ["ls"],
}


@pytest.mark.parametrize("tool", HEAVY)
def test_no_tool_executes_what_lies_in_the_current_folder(fetched: Fetched, tool: str) -> None:
    """Where the results lie, beside modules of all names, every tool does its work."""
    out = fetched.project.out
    plant(out, fetched.marker)  # as an older qft would have brought them
    plant(out / "adapter", fetched.marker)
    done = run_in(out, fetched.project, *HEAVY[tool])

    assert done.returncode == 0, done.stderr
    assert not fetched.marker.exists(), fetched.marker.read_text()


def test_publishing_sends_and_executes_none_of_it(fetched: Fetched) -> None:
    """`qft push` beside planted modules sends the adapter's own files."""
    plant(fetched.project.out, fetched.marker)
    with hubs.running() as hub:
        words = ["push", "tiny", "--repo", "me/moods", "--json"]
        env = {"HF_TOKEN": hubs.TOKEN, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        done = run_in(fetched.project.out, fetched.project, *words, **env)

    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert not fetched.marker.exists(), fetched.marker.read_text()


@pytest.mark.parametrize(
    "words",
    [["audit"], ["plan"], ["init", "train.jsonl", "--out", "other.yaml"], ["doctor"]],
    ids=["audit", "plan", "init", "doctor"],
)
def test_files_of_the_user_beside_run_yaml_do_not_matter(
    fetched: Fetched, words: list[str]
) -> None:
    """A `trainer.py` or `random.py` of the user's own is not taken for ours or Python's."""
    done = run_in(fetched.project.folder, fetched.project, *words)

    assert "Traceback" not in done.stderr
    assert "No module named" not in done.stderr
    assert not fetched.marker.exists(), fetched.marker.read_text()
    if words != ["doctor"]:  # its machine is gone
        assert done.returncode in {0, 2}, done.stderr


def run_in(
    folder: Path, project: Project, *words: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `qft` to its end in that folder."""
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(
        [sys.executable, str(root / "cli.py"), *words],
        cwd=folder,
        env=project.environment() | {"HF_HUB_OFFLINE": "1"} | env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_users_python_settings_are_not_handed_on(tmp_path: Path) -> None:
    """A PYTHONPATH that names the current folder, or is half empty, leads no tool astray."""
    marker = tmp_path / "executed"
    plant(tmp_path, marker, [name for name in NAMES if name in {"trainer", "random", "queue"}])
    around = {**os.environ, "PYTHONPATH": f":{tmp_path}", "PYTHONSTARTUP": "x", "PYTHONINSPECT": ""}
    done = subprocess.run(
        argv_of("trainer", "--help"),
        cwd=tmp_path,
        env=environment_of(around),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert {"PYTHONSTARTUP", "PYTHONINSPECT"}.isdisjoint(environment_of(around))


def test_qft_itself_leaves_the_current_folder_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever spelling it got onto the path; a checkout that is the current folder stays."""
    monkeypatch.chdir(tmp_path)
    path = ["/bin", "", ".", str(tmp_path), "/lib/python"]

    assert without_current_folder(path, ours="/elsewhere") == ["/bin", "/lib/python"]
    assert without_current_folder([str(tmp_path)], ours=str(tmp_path)) == [str(tmp_path)]
