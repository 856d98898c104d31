"""The arithmetic of a T4 and of an A10, played by a CPU: its types, its autocast, its loss scale.

Nothing here says how fast or how exact a GPU is; it says that no type meets one it cannot be mixed
with, in training, after a resume, and in answering.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from support import tiny
from support.adapters import make
from support.rig import Rig, outcome, restored, rig, twin_of
from torch.nn import functional

from trainer import model as models
from trainer.device.precision import Precision, choose_precision
from trainer.scoring.constrained import Decoder, eval_mode

T4, A10 = (7, 5), (8, 6)


class Layer:
    """What accelerate is on a GPU, for tensors that lie on the CPU."""

    def __init__(self, *, mixed_precision: str, cpu: bool) -> None:
        assert cpu
        self.device = torch.device("cpu")
        self.scaler = None
        self._type = models.DTYPES.get(mixed_precision)

    def autocast(self) -> AbstractContextManager[Any]:
        """Choose types per operation, if any are to be chosen."""
        return nullcontext() if self._type is None else torch.autocast("cpu", dtype=self._type)

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass."""
        torch.autograd.backward(loss)


def play(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let the trainer choose for this GPU, and norms and adapters do what they do under CUDA."""
    enabled, norm = torch.is_autocast_enabled, functional.layer_norm

    def precision(train: Any, *, device: torch.device, seq2seq: bool) -> Precision:
        assert device.type == "cpu"
        return choose_precision(
            train.precision, device="cuda", capability=capability, seq2seq=seq2seq
        )

    def layer_norm(rows: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
        if enabled("cpu"):  # CUDA's autocast lets norms compute, and return, float32
            rows, weight, bias = rows.float(), weight.float(), bias.float()
        return norm(rows, shape, weight, bias, eps)

    monkeypatch.setattr(models, "device_precision", precision)
    monkeypatch.setattr(accelerate, "Accelerator", Layer)
    monkeypatch.setattr(functional, "layer_norm", layer_norm)
    # PEFT asks without a device, and means CUDA.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": enabled(device))


def answers(made: Rig) -> list[Any]:
    """Return what the trained model writes to three prompts."""
    prompts = [item.prompt_ids for item in made.context.examples[:3]]
    decoder = Decoder(made.context.model, eos_ids=[1], pad_id=3)
    with eval_mode(made.context.model):
        state = decoder.prefill(prompts)
        assert torch.isfinite(state.logits).all()
        return decoder.generate(state, tokens_max=4)


@pytest.mark.parametrize(
    ("gpu", "kind", "method"),
    [
        (T4, "phi", {"kind": "qdora"}),
        (T4, "flan-t5", {"kind": "qdylora"}),
        (A10, "falcon", {"kind": "qlora"}),
        (A10, "t5", {"kind": "nola", "bases": 16, "quant": "int8"}),
    ],
)
def test_the_types_of_a_gpu_train_resume_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    gpu: tuple[int, int], kind: str, method: dict[str, Any],
) -> None:  # fmt: skip
    """Each step computes and learns, a resume gives the same bits, and answers are finite."""
    play(monkeypatch, gpu)
    make(kind, tmp_path / "model")
    run = tiny.make_run(
        tmp_path, rows=8, method={"dropout": 0.1, **method},
        train={"steps": 4, "micro_batch": 2, "gradient_checkpointing": kind != "falcon"},
    )  # fmt: skip
    whole = rig(run)
    base = {p.dtype for p in whole.context.model.parameters() if not p.requires_grad}
    whole.train(until=4)
    twin = twin_of(whole, tmp_path / "twin")
    first = rig(twin)
    first.train(until=2)
    first.save()
    second = restored(twin)
    second.train(until=4)
    record = tiny.losses(run)

    assert (torch.float16 if gpu is T4 else torch.bfloat16) in base
    assert (whole.state.scaler is not None) == (gpu is T4)
    assert not all(line["skipped"] for line in record)
    assert all(line["loss"] for line in record)
    assert outcome(whole) == outcome(second)
    assert answers(whole) == answers(second)
