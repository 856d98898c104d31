"""`verify` says yes to an honest run and finds one changed bit in a dishonest one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.rig import saves_in_step

from trainer.__main__ import main
from trainer.atomic import RealDisk, replace_file
from trainer.rundir.layout import alone_in
from trainer.saving.manifest import directory_name


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of eight steps, saved after every third."""
    run = tiny.make_run(tmp_path_factory.mktemp("honest"), rows=12, train={"steps": 8})

    with saves_in_step():
        assert main(["train", "--run-dir", str(run)]) == 0
    return run


def verify(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run `verify --json` in this process; return exit code and result."""
    capsys.readouterr()
    code = main(["verify", "--run-dir", str(run), "--json", *arguments])
    text = capsys.readouterr().out
    return code, json.loads(text) if text else None


def test_an_honest_run_verifies_in_a_fresh_process(honest: Path) -> None:
    """Replayed from the last checkpoint but one, an honest run gives the same bits and exit 0."""
    ended = tiny.run_trainer("verify", honest)

    assert ended.returncode == 0, ended.stderr
    assert "verified: steps 7-8 replayed" in ended.stdout
    assert "equal the checkpoint of step 8" in ended.stdout


@pytest.mark.parametrize(("steps", "start", "compared"), [(1, 6, None), (2, 6, 8), (8, 0, 8)])
def test_a_replay_starts_where_enough_steps_follow(
    honest: Path,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    start: int,
    compared: int | None,
) -> None:
    """The newest checkpoint with enough steps after it is taken, or the very beginning."""
    before = sorted((p, p.stat().st_mtime_ns) for p in honest.rglob("*"))
    code, found = verify(honest, capsys, "--steps", str(steps))

    assert code == 0
    assert (found["after_step"], found["steps"], found["equal"]) == (start, steps, True)
    assert found["checkpoint_compared"] == compared
    assert before == sorted((p, p.stat().st_mtime_ns) for p in honest.rglob("*"))


def test_a_log_with_one_wrong_digit_is_found(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that differs in its last digit is named with its step, and the exit code is 1."""
    run = shutil.copytree(honest, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[7])
    record["loss"] += 1e-12
    lines[7] = json.dumps(record)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    code, found = verify(run, capsys)

    assert code == 1
    assert (found["equal"], found["first_difference"]["step"]) == (False, 8)
    assert found["first_difference"]["key"] == "loss"


def test_a_checkpoint_of_other_bits_is_found(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training from a whole but different state does not give the logged bits."""
    other = tiny.make_run(tmp_path / "other", rows=12, train={"steps": 8, "seed": 1})
    with saves_in_step():
        assert main(["train", "--run-dir", str(other)]) == 0
    run = shutil.copytree(honest, tmp_path / "run")
    for name in ("config.json", "metrics.jsonl"):
        replace_file(run / name, (honest / name).read_text(), disk=RealDisk())
    target = run / "checkpoints" / directory_name(6)
    fingerprint = (target / "fingerprint.json").read_bytes()
    shutil.rmtree(target)
    shutil.copytree(other / "checkpoints" / directory_name(6), target)
    forge(target, fingerprint)
    code, found = verify(run, capsys)

    assert code == 1
    assert found["first_difference"]["step"] == 7


def forge(directory: Path, fingerprint: bytes) -> None:
    """Give a checkpoint the fingerprint of another run, with a manifest that agrees."""
    import hashlib

    (directory / "fingerprint.json").write_bytes(fingerprint)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    manifest["files"]["fingerprint.json"] = {
        "size": len(fingerprint),
        "sha256": hashlib.sha256(fingerprint).hexdigest(),
    }
    text = json.dumps(manifest, sort_keys=True, indent=1) + "\n"
    (directory / "manifest.json").write_text(text)


def test_a_run_without_steps_has_nothing_to_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step there is nothing to replay: exit 78 and a sentence."""
    run = tiny.make_run(tmp_path, rows=8)

    assert main(["verify", "--run-dir", str(run)]) == 78
    assert "nothing to verify" in capsys.readouterr().err


def test_other_settings_are_refused_also_from_the_first_step(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replay from the beginning of a run with a changed config would prove nothing."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    config = json.loads((run / "config.json").read_text())
    config["train"]["lr"] = 0.5
    (run / "config.json").write_text(json.dumps(config))

    assert main(["verify", "--run-dir", str(run), "--steps", "8"]) == 78
    assert "train.lr: was 0.01, is 0.5" in capsys.readouterr().err


def test_a_run_at_work_is_not_verified(honest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a trainer holds the directory, `verify` and a second trainer end with 73."""
    with alone_in(honest):
        codes = [main([command, "--run-dir", str(honest)]) for command in ("verify", "train")]

    assert codes == [73, 73]
    assert "another trainer works in" in capsys.readouterr().err
