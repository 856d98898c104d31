"""A training job ends with an adapter and its exit code, whatever state it is started in."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a run that nothing interrupted."""
    run = tiny.make_run(tmp_path_factory.mktemp("undisturbed"), rows=24, train={"steps": 30})
    ended = tiny.run_trainer("train", run)

    assert ended.returncode == 0, ended.stderr
    return run


def test_a_run_leaves_adapter_status_log_and_curves(undisturbed: Path) -> None:
    """A finished run has its adapter, a status that says done, and a log line for every step."""
    status = json.loads((undisturbed / "status.json").read_text())

    assert (undisturbed / "adapter" / "adapter_config.json").is_file()
    assert tuple(status[k] for k in ("phase", "step", "steps", "exact")) == ("done", 30, 30, True)
    assert list(range(1, 31)) == [line["step"] for line in tiny.losses(undisturbed)]
    assert [path.stat().st_size > 0 for path in (undisturbed / "tb").iterdir()] == [True]


def test_a_finished_run_is_not_done_again(undisturbed: Path) -> None:
    """Started once more, a finished run ends well at once and leaves its adapter alone."""
    before = (undisturbed / "adapter" / "adapter_model.safetensors").stat()
    ended = tiny.run_trainer("train", undisturbed)

    assert ended.returncode == 0
    assert "nothing to do" in ended.stderr
    assert before == (undisturbed / "adapter" / "adapter_model.safetensors").stat()


def test_a_terminated_run_saves_and_goes_on_to_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM ends with 75 and a saved state; the next start ends with the very same adapter."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((undisturbed / "config.json").read_bytes())
    process = subprocess.Popen(
        tiny.trainer_command("train", run), cwd=tiny.ROOT, env=tiny.quiet_environment()
    )
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    first = process.wait(timeout=60)
    stopped_at = json.loads((run / "status.json").read_text())["checkpoint_step"]
    second = tiny.run_trainer("train", run)

    assert (first, second.returncode) == (75, 0)
    assert 1 <= stopped_at < 30
    assert tiny.losses(undisturbed) == tiny.losses(run)
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)
