"""The memory foretold for experts is what a pass through them allocates."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from trainer.config import PrecisionChoice, TrainTable
from trainer.device.precision import Precision
from trainer.device.shapes import read_shape
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters
from trainer.method_table import MethodTable

TOKENS, RANK = 4, 4
MIXTRAL = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


# As in test_memory.py, for PEFT asks for checkpointing wherever it is put on a model.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("layers", "targets", "checkpointing"),
    [
        (3, "all-linear", True),
        (3, ["q_proj"], True),
        (3, ["q_proj"], False),
        (2, "all-linear", False),
    ],
)
def test_experts_need_what_a_pass_through_them_allocates(
    tmp_path: Path,
    layers: int,
    targets: str | list[str],
    checkpointing: bool,  # noqa: FBT001 - one of the cases
) -> None:
    """Of few tokens, unpacked experts and adapters' gradients are nearly all that is allocated."""
    import torch
    import transformers
    from support.allocations import Allocations

    from trainer import model as models

    config = transformers.MixtralConfig(**MIXTRAL, num_hidden_layers=layers)
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    table = {"kind": "qlora", "r": RANK, "targets": targets}
    method, plain = MethodTable.model_validate(table), PrecisionChoice.BF16
    precision = Precision(compute=plain, autocast=False, loss_scaling=False, reason="")
    source = models.Source(name=str(tmp_path), revision=None, trust_remote_code=False)
    base = models.load_base(source, method, precision=precision, device=torch.device("cpu"))
    train = TrainTable(steps=1, gradient_checkpointing=checkpointing)
    model = models.attach_adapter(base, method, train).train()
    ids, seen = torch.arange(4, 4 + TOKENS)[None], Allocations()
    with seen, torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(input_ids=ids, labels=ids).loss.backward()

    work = TrainingSetup(
        tokens=TOKENS, r=RANK, precision=plain, checkpointing=checkpointing,
        targets=None if targets == "all-linear" else tuple(targets),
    )  # fmt: skip
    shape = read_shape(config.to_dict())
    foretold = estimate(shape, work)
    gradients = adapter_parameters(shape, work) * work.adapter_bytes

    assert seen.peak_bytes - gradients == pytest.approx(foretold.workspace, rel=0.15)
