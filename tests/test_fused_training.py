"""A whole training with every fused kernel, computing by its formulas: exact when killed, named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.rig import saves_in_step
from support.tiny import adapter_bytes, losses, make_run

from trainer.job import use_kernels
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.kernels import linear_cross_entropy, lora_dropout, rms_norm, swiglu
from trainer.kernels.choose import choose_kernels
from trainer.kernels.kernel_set import Kernel
from trainer.kernels.linear_cross_entropy import LinearCrossEntropy
from trainer.kernels.lora_linear_function import LoraLinear
from trainer.kernels.rms_norm import RmsNorm
from trainer.kernels.swiglu import SwiGlu
from trainer.training.loop import all_passes
from trainer.training.passes import backward_pass

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
TABLES: dict[str, Any] = {
    "train": {"steps": 4, "batch_size": 4, "micro_batch": 2, "gradient_checkpointing": True},
    "checkpoint": {"every": 2},
    "method": {"dropout": 0.1},
}


def kernels() -> list[Kernel]:
    """Return every kernel of a LLaMA, computing in plain operations."""
    return [
        RmsNorm(lambda: rms_norm.PLAIN),
        SwiGlu(lambda: swiglu.PLAIN),
        LinearCrossEntropy(lambda: linear_cross_entropy.PLAIN),
        LoraLinear(lambda: lora_dropout.PLAIN),
    ]


@contextmanager
def offered() -> Iterator[None]:
    """Offer them to a processor, which otherwise has none."""
    choose = partial(choose_kernels, kernels=kernels())
    with mock.patch.object(use_kernels, "choose_kernels", choose), saves_in_step():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    run = make_run(tmp_path_factory.mktemp("fused"), **TABLES)
    with offered():
        run_job(JobOptions(run_dir=run), lambda _text: None)
    return run


def test_all_of_them_train_together_and_are_named(trained: Path) -> None:
    """Each proves equal on the model itself, and the checkpoint names it with its version."""
    newest = max((trained / "checkpoints").glob("step-*"))
    hardware = json.loads((newest / "fingerprint.json").read_text())["hardware"]

    assert hardware["kernels"] == {kernel.name: kernel.version for kernel in kernels()}
    assert len(hardware["kernels"]) == 4


def test_a_run_that_was_killed_in_a_step_drops_the_same_places_again(
    trained: Path, tmp_path: Path
) -> None:
    """With masks from seeds, and activations computed again, a resumed run has the same bits."""
    run = make_run(tmp_path, **TABLES)
    calls = iter(range(100))

    def dying(*arguments: Any, **more: Any) -> Any:
        if next(calls) == 5:  # in the middle of the third step
            raise KeyboardInterrupt
        return backward_pass(*arguments, **more)

    target = f"{all_passes.__module__}.backward_pass"
    with offered(), mock.patch(target, dying), pytest.raises(KeyboardInterrupt):
        run_job(JobOptions(run_dir=run), lambda _text: None)
    with offered():
        run_job(JobOptions(run_dir=run), lambda _text: None)

    assert adapter_bytes(run) == adapter_bytes(trained)
    assert losses(run) == losses(trained)


def test_a_run_without_dropout_learns_what_plain_operations_learn(tmp_path: Path) -> None:
    """Without dropout, whose masks are others, losses differ by rounding alone."""
    tables = {**TABLES, "method": {"dropout": 0.0}}
    plain, fused = (make_run(tmp_path / way, **tables) for way in ("plain", "fused"))
    with saves_in_step():
        run_job(JobOptions(run_dir=plain), lambda _text: None)
    with offered():
        run_job(JobOptions(run_dir=fused), lambda _text: None)

    expected = [one["loss"] for one in losses(plain)]
    assert [one["loss"] for one in losses(fused)] == pytest.approx(expected, rel=1e-4)
