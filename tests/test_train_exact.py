"""With `train.exact: false` a run may add up in any order, and says so wherever it is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import make_run

from trainer.config import load_config
from trainer.device.determinism import Determinism
from trainer.errors import ConfigError
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.rundir.fingerprint import compare, flatten_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
ANY, WARNS, REFUSES = range(3)
"""What torch does about an operation without a fixed order, as its debug mode counts."""


@pytest.mark.parametrize(("exact", "inside"), [(True, REFUSES), (False, ANY)])
def test_torch_is_free_inside_a_step_and_only_there(*, exact: bool, inside: int) -> None:
    """Without fixed orders torch refuses nothing in a step; scoring keeps to them as ever."""
    determinism = Determinism(exact=exact)
    with determinism.enforced():
        assert torch.get_deterministic_debug_mode() == inside
    assert torch.get_deterministic_debug_mode() == WARNS
    refusal = RuntimeError("it does not have a deterministic implementation")
    assert determinism.relax(refusal) is exact


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_status_receipt_and_log_name_a_run_inexact_from_its_first_step(
    tmp_path: Path,
) -> None:
    """What is given up for speed is in the log, the status and the receipt."""
    run = make_run(tmp_path, train={"steps": 2, "exact": False})
    messages: list[str] = []
    run_job(JobOptions(run_dir=run), messages.append)
    (line,) = [one for one in messages if "train.exact" in one]
    assert line.startswith("not bit for bit from step 1: `train.exact` is false")
    status, receipt = read(run / "status.json"), read(run / "adapter" / "qft.json")
    assert (status["exact"], status["inexact_from"]) == (False, 1)
    assert (receipt["status"]["exact"], receipt["status"]["inexact_from"]) == (False, 1)


def test_a_run_of_an_earlier_version_is_the_same_run_while_exactness_is_the_default(
    tmp_path: Path,
) -> None:
    """The field is part of the fingerprint only where it is false, and may change if allowed."""
    before = {"config": flatten_config(load_config(make_run(tmp_path / "a") / "config.json"))}
    assert "train.exact" not in before["config"]
    fast = make_run(tmp_path / "b", train={"exact": False})
    after = {"config": flatten_config(load_config(fast / "config.json"))}
    with pytest.raises(ConfigError, match=r"train\.exact: was nothing, is false"):
        compare(before, after, allowed=()).require()
    verdict = compare(before, after, allowed=["exact"])
    assert any(line.startswith("train.exact") for line in verdict.inexact)
