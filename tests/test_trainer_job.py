"""A training job ends with an adapter and its exit code, whatever state it is started in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny

from trainer.__main__ import main
from trainer.atomic import RealDisk
from trainer.saving.checkpoint import Store, load
from trainer.saving.manifest import directory_name, steps_present

# A trainer that gets its SIGTERM after a step of our choice: thirty steps take less time than
# another process may need to be woken up and send one.
TERMINATED = """
import os, signal, sys
from trainer.job.job import prepare_environment
prepare_environment()
from trainer.__main__ import main
from trainer.saving.checkpointer import Checkpointer
after = Checkpointer.after_step
def after_step(self, record):
    after(self, record)
    if record["step"] == 7:
        os.kill(os.getpid(), signal.SIGTERM)
Checkpointer.after_step = after_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a run that nothing interrupted."""
    run = tiny.make_run(tmp_path_factory.mktemp("undisturbed"), rows=24, train={"steps": 30})

    assert main(["train", "--run-dir", str(run)]) == 0
    return run


def test_a_run_leaves_adapter_status_log_and_curves(undisturbed: Path) -> None:
    """A finished run has its adapter, a status that says done, and a log line for every step."""
    status = json.loads((undisturbed / "status.json").read_text())

    assert (undisturbed / "adapter" / "adapter_config.json").is_file()
    assert tuple(status[k] for k in ("phase", "step", "steps", "exact")) == ("done", 30, 30, True)
    assert list(range(1, 31)) == [line["step"] for line in tiny.losses(undisturbed)]
    assert [path.stat().st_size > 0 for path in (undisturbed / "tb").iterdir()] == [True]


def test_a_finished_run_is_not_done_again(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started once more, a finished run ends well at once and leaves its adapter alone."""
    before = identity(undisturbed)
    output = json.loads((undisturbed / "status.json").read_text())
    code = main(["train", "--run-dir", str(undisturbed)])

    assert code == 0
    assert "nothing to do" in capsys.readouterr().err
    still = json.loads((undisturbed / "status.json").read_text())
    assert {k: output[k] for k in ("phase", "step", "loss")} == {
        k: still[k] for k in ("phase", "step", "loss")
    }
    assert before == identity(undisturbed)


def test_a_terminated_run_saves_and_goes_on_to_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM ends with 75 and a saved state; the next start ends with the very same adapter."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((undisturbed / "config.json").read_bytes())
    ended = subprocess.run(
        [sys.executable, "-c", TERMINATED, "train", "--run-dir", str(run)],
        cwd=tiny.ROOT, env=tiny.quiet_environment(), timeout=600, check=False,
    )  # fmt: skip
    stopped_at = json.loads((run / "status.json").read_text())["checkpoint_step"]
    second = tiny.run_trainer("train", run)

    assert (ended.returncode, second.returncode) == (75, 0), second.stderr
    assert stopped_at == 7
    assert tiny.losses(undisturbed) == tiny.losses(run)
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)


def test_scores_are_made_once_and_again_when_the_prompt_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both scores are there after a run; a changed question is asked anew, without training."""
    rows = tiny.make_rows(tmp_path / "eval.jsonl", 6)
    labels = list(tiny.MOODS)
    run = tiny.make_run(
        tmp_path,
        rows=8,
        train={"steps": 2},
        data={"eval": str(rows)},
        eval={"kind": "label", "labels": labels},
    )
    first = main(["train", "--run-dir", str(run)])
    scores = [json.loads((run / f"eval-{stage}.json").read_text()) for stage in ("before", "after")]
    adapter = identity(run)
    capsys.readouterr()
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")
    again = main(["train", "--run-dir", str(run)])
    anew = json.loads((run / "eval-after.json").read_text())

    assert (first, again) == (0, 0)
    assert [score["n"] for score in scores] == [6, 6]
    assert anew["n"] == 7
    assert adapter == identity(run)


def test_names_beside_the_run_are_found_when_it_is_scored_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eval` reads the rows that the config names relative to the run, learnt and held out."""
    tiny.make_rows(tmp_path / "eval.jsonl", 6)
    run = tiny.make_run(
        tmp_path,
        rows=8,
        train={"steps": 1},
        data={"train": "../train.jsonl", "eval": "../eval.jsonl"},
        eval={"kind": "label", "labels": list(tiny.MOODS)},
    )
    code = main(["eval", "--run-dir", str(run)])

    assert code == 0
    assert json.loads(capsys.readouterr().out)["n"] == 6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_the_adapter_loads_with_plain_peft(undisturbed: Path) -> None:
    """`peft.PeftModel.from_pretrained` takes the result as it lies there."""
    import peft
    from transformers import AutoModelForCausalLM

    config = json.loads((undisturbed / "config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["model"]["id"])
    model = peft.PeftModel.from_pretrained(base, str(undisturbed / "adapter"))
    learnt = [value for name, value in model.named_parameters() if "lora_B" in name]

    assert len(learnt) == 14
    assert all(value.abs().sum() > 0 for value in learnt)


def test_a_run_whose_last_checkpoint_came_elsewhere_has_its_whole_log(
    undisturbed: Path, tmp_path: Path
) -> None:
    """On a new machine with only the checkpoint of the end, log and adapter are still made."""
    run = moved(undisturbed, tmp_path)

    assert main(["train", "--run-dir", str(run)]) == 0
    assert (undisturbed / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)


def test_a_checkpoint_that_does_not_fit_stands_in_nobodys_way(
    undisturbed: Path, tmp_path: Path
) -> None:
    """A whole one of odd contents is set aside: what is saved after it is kept and counts."""
    run = moved(undisturbed, tmp_path)
    root = run / "checkpoints"
    for step in steps_present(root):
        snapshot = load(root / directory_name(step), tensor_bytes_max=1 << 30)
        shutil.rmtree(root / directory_name(step))
        state = {**snapshot.state, "counters": {"of": "another version"}}
        Store(root, keep=9, disk=RealDisk()).save(replace(snapshot, state=state))

    assert main(["train", "--run-dir", str(run)]) == 0
    kept = steps_present(root)  # the one before the last lies where the disk had time for it
    snapshots = [load(root / directory_name(step), tensor_bytes_max=1 << 30) for step in kept]
    assert len(kept) == 2
    assert kept[0] == 30
    assert all("of" not in snapshot.state["counters"] for snapshot in snapshots)
    assert sorted(path.name for path in root.iterdir()) == sorted(map(directory_name, kept))
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)


def test_scores_do_not_depend_on_where_a_run_was_stopped(tmp_path: Path) -> None:
    """In mixed precision too, the model just trained is scored as the one loaded from its files."""
    rows = str(tmp_path / "train.jsonl")
    run = tiny.make_run(
        tmp_path, rows=9, train={"steps": 2, "precision": "bf16"}, data={"eval": rows},
        eval={"kind": "label", "labels": list(tiny.MOODS), "baselines": False},
    )  # fmt: skip
    scores = []
    for _ in range(2):
        assert tiny.run_trainer("train", run).returncode == 0
        score = json.loads((run / "eval-after.json").read_text())
        scores.append({**score, "seconds": None})
        (run / "eval-after.json").unlink()

    assert scores[0] == scores[1]


def test_a_finished_run_is_not_taken_for_that_of_another_base(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another base in the config there is something to do, and it is refused."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    config = json.loads((run / "config.json").read_text())
    config["model"]["id"] = str(tiny.make_model(tmp_path / "other", seed=1))
    (run / "config.json").write_text(json.dumps(config))

    assert main(["train", "--run-dir", str(run)]) == 78
    assert "base.model: was" in capsys.readouterr().err


def test_fewer_steps_than_are_done_are_refused(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run cannot be shortened below its checkpoint, and says so instead of calling it done."""
    run = moved(undisturbed, tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["train"]["steps"] = 20
    (run / "config.json").write_text(json.dumps(config))

    assert main(["train", "--run-dir", str(run), "--allow-change", "steps"]) == 78
    assert "train.steps: 20 wanted, 30 done already" in capsys.readouterr().err
    assert not (run / "adapter").exists()


def moved(run: Path, directory: Path) -> Path:
    """Return a new run directory with nothing but config and checkpoints of `run`."""
    new = directory / "run"
    shutil.copytree(run / "checkpoints", new / "checkpoints")
    shutil.copyfile(run / "config.json", new / "config.json")
    return new


def identity(run: Path) -> tuple[int, int]:
    """Return what changes whenever the adapter is written."""
    found = (run / "adapter" / "adapter_model.safetensors").stat()
    return found.st_ino, found.st_mtime_ns
