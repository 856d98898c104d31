"""A base's 4-bit layers are computed in one way for any number of tokens, kept values or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.rig import saves_in_step
from support.tiny import adapter_bytes, losses, make_run

from trainer.device.unpacked import LayerValues, unpack_base
from trainer.job import faster_on_cpu, keep_unpacked, use_kernels
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.kernels.choose import choose_kernels
from trainer.kernels.kernel_set import Card
from trainer.kernels.linear_4bit import BaseLinear4bit

TABLES: dict[str, Any] = {
    "train": {"steps": 3, "batch_size": 3, "micro_batch": 2, "gradient_checkpointing": True},
    "checkpoint": {"every": 3},
    "method": {"kind": "qlora"},
}
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def cpu(dtype: torch.dtype = torch.float32) -> Card:
    """Return a processor with this arithmetic."""
    return Card(device=torch.device("cpu"), capability=None, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_equal_to_bitsandbytes_in_every_type(dtype: torch.dtype) -> None:
    """Its proof accepts it: products and gradients of few and of many tokens, and kept values."""
    assert BaseLinear4bit().prove(cpu(dtype)) is None


class Shifted(LayerValues):
    """Computes with values that are a little too large."""

    def get(self) -> torch.Tensor:
        """Return a hundredth more."""
        return super().get() * 1.01


class Flattering(LayerValues):
    """Returns other bits if the values are kept."""

    def keep(self) -> int:
        """Keep what is rounded once more."""
        size = super().keep()
        assert self._kept is not None
        self._kept = self._kept.bfloat16().float()
        return size


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (Shifted, "y of a 4-bit product of 1 tokens (nf4) in torch.float32 is "),
        (Flattering, "y of a 4-bit product of 1 tokens (nf4) in torch.float32 has other bits when"),
    ],
)
def test_a_wrong_way_fails_the_proof(values: Callable[[Any], LayerValues], problem: str) -> None:
    """Other values are named, and so are kept values that are not those unpacked anew."""
    assert str(BaseLinear4bit(values).prove(cpu())).startswith(problem)


def test_a_base_without_such_layers_is_named() -> None:
    """Without 4-bit layers there is nothing to compute, and the base is named by its class."""
    assert BaseLinear4bit().unsuitable(torch.nn.Sequential(torch.nn.Linear(2, 2)), cpu()) == (
        "Sequential has no frozen 4-bit layer"
    )


def trained(directory: Path, messages: list[str]) -> Path:
    """Train a small base in 4 bits."""
    run = make_run(directory, **TABLES)
    with saves_in_step():
        run_job(JobOptions(run_dir=run), messages.append)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training as a processor does it, with no kernel."""
    return trained(tmp_path_factory.mktemp("plain"), [])


@pytest.mark.parametrize("is_plenty", [True, False])
def test_a_training_has_the_same_bits_whether_values_are_kept_or_not(
    plain: Path, tmp_path: Path, *, is_plenty: bool
) -> None:
    """A processor's products are these, too, so the kernel changes no bit, kept or unpacked anew.

    The fingerprint names the kernel alike in both cases.
    """
    choose = partial(choose_kernels, kernels=[BaseLinear4bit()])
    none = mock.Mock(return_value=None)
    messages: list[str] = []
    with (
        mock.patch.object(use_kernels, "choose_kernels", choose),
        mock.patch.object(faster_on_cpu, "keep_unpacked", none),
        mock.patch.object(keep_unpacked, "unpack_base", unpack_base if is_plenty else none),
    ):
        run = trained(tmp_path, messages)
    (newest,) = (run / "checkpoints").glob("step-*")
    hardware = json.loads((newest / "fingerprint.json").read_text())["hardware"]

    assert hardware["kernels"] == {"linear_4bit": "unpacked-1"}
    assert any("are kept unpacked" in message for message in messages) is is_plenty
    assert losses(run) == losses(plain)
    assert adapter_bytes(run) == adapter_bytes(plain)
