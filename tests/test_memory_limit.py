"""Under a memory limit a training completes with the same batch, or says that it cannot."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from trainer.job.context import JobOptions
from trainer.job.job import run_job

AMPLE = 7 << 30
"""A limit that never holds, but under which memory is returned at once, as under one that does."""
ROWS, BATCH, STEPS = 24, 16, 2


@dataclass(frozen=True)
class Ended:
    """How a trainer in a process of its own ended."""

    code: int
    log: str
    run_dir: Path

    @property
    def memory(self) -> dict[str, Any]:
        """What it measured."""
        found: dict[str, Any] = json.loads((self.run_dir / "memory.json").read_text())
        return found

    def limit_with(self, free_bytes: int) -> int:
        """Return a limit that leaves so much free once the model is loaded."""
        return int(self.memory["reserved_bytes"] - self.memory["extra_bytes"] + free_bytes)


def make_run(directory: Path, **train: Any) -> Path:
    """Lay out a run of a narrow, deep model: little to compute, and much to keep of long rows."""
    directory.mkdir(parents=True)
    model = tiny.make_model(directory / "model", layers=12)
    rows = [{"text": "rain again " * 16, "mood": tiny.MOODS[at % 3]} for at in range(ROWS)]
    data = directory / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.make_config(
        model, data, train={"steps": STEPS, "batch_size": BATCH, "max_length": 250, **train}
    )
    return tiny.write_config(directory / "run", config)


def train_within(run_dir: Path, limit_bytes: int) -> Ended:
    """Train under `ulimit -v`."""
    limited = f'ulimit -v {limit_bytes // 1024} && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", limited, "sh", *tiny.trainer_command("train", run_dir)],
        cwd=tiny.ROOT,
        env=tiny.quiet_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Ended(code=done.returncode, log=done.stderr, run_dir=run_dir)


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run that has memory enough."""
    found = train_within(make_run(tmp_path_factory.mktemp("enough") / "a"), AMPLE)
    assert found.code == 0, found.log
    return found


def test_without_shortage_nothing_is_done(unlimited: Ended) -> None:
    """With memory enough the whole batch goes at once, and the measurement is kept beside it."""
    memory = unlimited.memory

    assert memory["micro_batch"] == BATCH
    assert memory["steps_taken"] == []
    assert memory["tokens"] == BATCH * 192
    assert 0 < memory["extra_bytes"] < memory["allocated_bytes"] < memory["limit_bytes"]
    assert "longest batch measured: " in unlimited.log


def test_a_limit_makes_smaller_passes_of_the_same_batch(unlimited: Ended, tmp_path: Path) -> None:
    """Between one row and the batch the run completes: same rows a step, and it says what it did.

    The adapter is that of a run which is configured so from the start, bit for bit.
    """
    limit = unlimited.limit_with((40 << 20) + unlimited.memory["extra_bytes"] // 2)
    limited = train_within(make_run(tmp_path / "limited"), limit)

    assert limited.code == 0, limited.log
    size = limited.memory["micro_batch"]
    assert 1 <= size < BATCH
    assert "micro-batch 16 -> 8 (" in limited.log
    assert "`ulimit -v`" in limited.log
    assert limited.memory["steps_taken"][0].startswith("micro-batch 16 -> 8 (")
    learnt = [[r["tokens"], r["targets"]] for r in tiny.losses(limited.run_dir)]
    assert learnt == [[r["tokens"], r["targets"]] for r in tiny.losses(unlimited.run_dir)]
    receipt = json.loads((limited.run_dir / "adapter" / "qft.json").read_text())["memory"]
    assert receipt == {"micro_batch": size, "steps_taken": limited.memory["steps_taken"]}

    configured = make_run(tmp_path / "configured", micro_batch=size)
    run_job(JobOptions(run_dir=configured), lambda _text: None)
    assert tiny.adapter_bytes(limited.run_dir) == tiny.adapter_bytes(configured)
    assert tiny.losses(limited.run_dir) == tiny.losses(configured)


def test_an_impossible_limit_is_refused_in_words(unlimited: Ended, tmp_path: Path) -> None:
    """Where not even one row fits, the run ends with 78, both figures and what would help."""
    refused = train_within(make_run(tmp_path / "refused"), unlimited.limit_with(20 << 20))

    assert refused.code == 78, refused.log
    assert "Traceback" not in refused.log
    assert "one sequence at a time does not fit: " in refused.log
    assert "GB: the limit of this process (`ulimit -v`)" in refused.log
    assert "tried, one after the other: micro-batch 16 -> 8; " in refused.log
    assert not (refused.run_dir / "adapter").exists()
    assert json.loads((refused.run_dir / "status.json").read_text())["phase"] == "failed"


def test_a_limit_below_the_libraries_is_refused_before_they_are_loaded(tmp_path: Path) -> None:
    """Some of them would end the process with words and a code of their own."""
    refused = train_within(make_run(tmp_path / "tiny"), 600 << 20)

    assert refused.code == 78
    assert "torch and what belongs to it take about 0.84 GB, and " in refused.log
    assert "GB are free of 0.63 GB: the limit of this process (`ulimit -v`)" in refused.log


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group of this test's own, of whichever version this system has."""
    name = f"qft-test-{uuid.uuid4().hex[:8]}"
    for top, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", top, name)
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("control groups cannot be made here")


@pytest.mark.slow
def test_the_kernel_never_has_to_end_the_process(
    control_group: Path, unlimited: Ended, tmp_path: Path
) -> None:
    """In a control group that would kill, the run completes with smaller passes."""
    file = next(
        one
        for one in control_group.iterdir()
        if one.name in {"memory.max", "memory.limit_in_bytes"}
    )
    memory = unlimited.memory
    file.write_text(str(memory["allocated_bytes"] - memory["extra_bytes"] // 2))
    run = make_run(tmp_path / "grouped")
    enter = f'echo $$ > {control_group}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", enter, "sh", *tiny.trainer_command("train", run)],
        cwd=tiny.ROOT, env=tiny.quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "the limit of the control group" in done.stderr
    assert len(tiny.losses(run)) == STEPS
    assert (run / "adapter").exists()
