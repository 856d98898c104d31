"""What is read of a run that is only looked at: the table of its machine alone."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny import ROOT

import cli
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder
from commands.runs.saved_run import read_saved_run
from commands.ui.errors import UsageError
from infra.durable import write_json


def saved(tmp_path: Path, **tables: Any) -> RunFolder:
    """Write the config of a run that was started, with some tables of its own."""
    rows = {"train": "t.jsonl", "prompt": "{q}", "completion": "{a}"}
    config = {"name": "tiny", "model": {"id": "base"}, "data": rows, **tables}
    folder = RunFolder(root=tmp_path / "tiny")
    folder.root.mkdir()
    write_json(folder.config, {"config": config, "path": str(tmp_path / "work" / "run.yaml")})
    return folder


@pytest.mark.parametrize(
    "vm",
    [
        {},
        {"provider": "azure", "gpu": "A10", "max_price": 2.0, "azure": {"subscription": "s"}},
        {"provider": ["azure", "aws"], "gpu": ["T4", "A10"], "max_price": 1.0},
        {"provider": "ssh", "ssh": {"host": "h", "user": "u", "key": "keys/mine"}},
    ],
)
def test_the_table_is_what_the_whole_config_has(tmp_path: Path, vm: dict[str, Any]) -> None:
    """The machine's table, the results' folder and a key's path are as in the whole config."""
    folder = saved(tmp_path, vm=vm)

    found, whole = read_saved_run(folder), reopen(folder)

    assert found.vm == whole.config.vm
    assert found.out == whole.out
    assert found.simulated == whole.simulated
    assert found.vm.ssh is None or found.vm.ssh.key == str(tmp_path / "work" / "keys" / "mine")


def test_a_wrong_machine_table_brings_every_error(tmp_path: Path) -> None:
    """A saved table `vm` that cannot be is refused in the words of the whole check."""
    folder = saved(tmp_path, vm={"disk_gb": "much"}, train={"steps": -1})

    with pytest.raises(UsageError) as one:
        read_saved_run(folder)
    with pytest.raises(UsageError) as other:
        reopen(folder)

    assert one.value.problems == other.value.problems
    assert any("vm.disk_gb" in problem for problem in one.value.problems)


def test_a_lost_config_is_named(tmp_path: Path) -> None:
    """A run whose saved config holds no tables is refused by the name of that file."""
    folder = saved(tmp_path)
    write_json(folder.config, {"path": "run.yaml"})

    with pytest.raises(UsageError, match=r"lost its config .*run\.json"):
        read_saved_run(folder)


def test_reading_a_run_imports_no_table_of_a_training() -> None:
    """`qft status` and `qft ls` start without the tables, the HTTP client and the SSH client."""
    heavy = ["commands.runs.config", "trainer.config", "trainer.method_table", "http.client"]
    heavy += ["remote.ssh", "commands.runs.session", "torch"]
    program = (
        "import sys, commands.status, commands.ls\n"
        f"print([one for one in {heavy} if one in sys.modules])"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert ended.stdout.strip() == "[]"


def test_a_command_runs_with_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector is off while the modules of a command load, and on when it begins."""
    found = []
    monkeypatch.setattr(gc, "freeze", lambda: found.append(gc.isenabled()))
    gc.disable()
    try:
        cli.load_command("ls")
        found.append(gc.isenabled())
        cli.load_command("ls")
    finally:
        gc.enable()

    assert found == [False, True]
