"""Whenever a trainer was killed, a whole adapter is at hand and its half-written files go."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import tiny
from support.faulty_disk import Died, DyingDisk, ForgetfulDisk
from support.models import make_adapter

from trainer.__main__ import main
from trainer.atomic import RealDisk, clear_partials, replace_directory, restore_directory
from trainer.data.convert import convert
from trainer.data.converters import ConvertOptions
from trainer.results.export import export
from trainer.results.merge import merge
from trainer.rundir.layout import sweep

WHOLE = {"one": "new", "two": "new"}


def put(directory: Path, text: str) -> Path:
    """Make a directory of two files that both say `text`."""
    directory.mkdir()
    for name in ("one", "two"):
        (directory / name).write_text(text)
    return directory


def held(directory: Path) -> dict[str, str]:
    """Return what the files of a directory say."""
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize("halves", [False, True])
def test_death_while_adapters_are_exchanged_leaves_a_whole_one(
    tmp_path: Path,
    halves: bool,  # noqa: FBT001 - a parameter of the case
) -> None:
    """Killed at every call of the exchange, the next start has the old or the new one, whole."""
    found = []
    for calls in range(5):
        root = tmp_path / f"{calls}"
        root.mkdir()
        target, fresh = put(root / "adapter", "old"), put(root / "fresh", "new")
        disk = DyingDisk(calls, halves=halves)
        try:
            replace_directory(fresh, target, disk=disk)
        except Died:
            assert held(target if target.exists() else root / ".adapter.old") in (
                WHOLE,
                dict.fromkeys(WHOLE, "old"),
            )
        restore_directory(target, disk=RealDisk())
        found.append(held(target)["one"])
        assert set(held(target).values()) == {found[-1]}
        assert not (root / ".adapter.old").exists()

    assert disk.calls == ["rename", "rename", "sync_directory", "remove_tree"]
    assert found == ["old", "old", "new", "new", "new"]


@pytest.mark.parametrize("calls", range(3))
def test_death_while_an_exchange_is_undone_or_finished_is_mended_by_the_next_start(
    tmp_path: Path, calls: int
) -> None:
    """A start that is killed while it mends leaves what the start after it mends."""
    for there in (True, False):
        root = tmp_path / str(there)
        root.mkdir()
        put(root / ".adapter.old", "old")
        if there:
            put(root / "adapter", "new")
        try:
            restore_directory(root / "adapter", disk=DyingDisk(calls, halves=True))
        except Died:
            restore_directory(root / "adapter", disk=RealDisk())

        assert held(root / "adapter") == (WHOLE if there else dict.fromkeys(WHOLE, "old"))
        assert [path.name for path in root.iterdir()] == ["adapter"]


def test_a_power_cut_after_the_exchange_leaves_the_new_adapter(tmp_path: Path) -> None:
    """The old one is removed only once the new name would survive a power cut."""
    target, fresh, disk = put(tmp_path / "adapter", "old"), tmp_path / "fresh", ForgetfulDisk()
    replace_directory(put(fresh, "new"), target, disk=disk)
    disk.cut()

    assert held(target) == WHOLE


def test_half_written_files_of_killed_trainers_go_at_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One start removes them all, whichever process left them, and nothing of anybody else."""
    ours = [
        ".status.json.12.partial", ".status.json.4711.partial", ".metrics.jsonl.12.partial",
        ".eval-after.json.7.partial", "..scored.json.12.partial", "..hashes.json.12.partial",
    ]  # fmt: skip
    others = [".exported.12.partial", ".notes.partial", ".status.json.partial", "status.json.1"]
    for name in [*ours, *others]:
        (tmp_path / name).write_text("{")
    put(tmp_path / ".adapter.partial", "half")
    code = main(["train", "--run-dir", str(tmp_path)])

    assert code == 78, capsys.readouterr().err  # there is no config
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*others, ".lock", "status.json"]
    )


def test_a_leftover_that_cannot_go_stops_no_start(tmp_path: Path) -> None:
    """Without the right to remove it, a half-written file is left for another time."""

    class Refusing(RealDisk):
        def remove_tree(self, path: Path) -> None:
            """Refuse."""
            raise PermissionError(path)

    (tmp_path / ".status.json.12.partial").write_text("{")
    sweep(tmp_path, disk=Refusing())

    assert (tmp_path / ".status.json.12.partial").exists()


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_what_a_killed_process_left_of_a_result_goes_with_the_next_try(
    tmp_path: Path, gone: int
) -> None:
    """Folder or file, it goes; what a living process writes, or has another name, stays."""
    put(tmp_path / f".merged.{gone}.partial", "half a model")
    (tmp_path / f".merged.{2**70}.partial").write_text("of no process there could be")
    put(tmp_path / f".merged.{os.getpid()}.partial", "of an older process of this number")
    others = [f".merged.{os.getppid()}.partial", ".merged.x.partial", f".merge.{gone}.partial"]
    for name in others:
        (tmp_path / name).write_text("{")
    clear_partials(tmp_path / "merged", disk=RealDisk())

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


# PEFT 0.21 asks transformers 5.23 by a name that the latter is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_a_merge_an_export_and_a_conversion_clear_what_killed_ones_left(
    tmp_path: Path, gone: int
) -> None:
    """Half a model, half an adapter and half a file of rows are gone once there is a whole."""
    base, adapter = tiny.make_model(tmp_path / "base"), tmp_path / "adapter"
    make_adapter(base, adapter)
    rows = tmp_path / "pairs.csv"
    rows.write_text("text,label\nfine,good\nbad,bad\n")
    for name in ("merged", "plain"):
        put(tmp_path / f".{name}.{gone}.partial", "half")
    (tmp_path / f".train.jsonl.{gone}.partial").write_text("half")
    merge(base, adapter, tmp_path / "merged", dtype=None, on_message=lambda _: None)
    export(adapter, tmp_path / "plain")
    convert("sentiment", rows, tmp_path, options=ConvertOptions(), held_out=0.5)

    assert [path.name for path in tmp_path.glob(".*")] == []


def test_an_adapter_written_anew_takes_the_place_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run writes its adapter over another run's, one of both is whole at every call."""
    run = tiny.make_run(tmp_path, rows=8, train={"steps": 2})
    assert main(["train", "--run-dir", str(run)]) == 0
    receipt = run / "adapter" / "qft.json"
    receipt.write_text(json.dumps({"training": {"of": "another run"}}))
    seen: list[bool] = []

    class Watched(DyingDisk):
        def _step(self, name: str, half: object = None) -> None:  # noqa: ARG002 - as above
            self.calls.append(name)
            places = (run / "adapter", run / ".adapter.old")
            seen.append(any((p / "adapter_config.json").is_file() for p in places))

    monkeypatch.setattr("trainer.job.write_adapter.RealDisk", lambda: Watched(0))

    assert main(["train", "--run-dir", str(run)]) == 0
    assert len(seen) > 5
    assert all(seen)
    assert "another run" not in receipt.read_text()
    assert not (run / ".adapter.old").exists()
