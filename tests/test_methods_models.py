"""Phi, Falcon, LLaMA and T5 are adapted by the same code, and T5 goes through the same loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import fresh_base, logits, make, plain_peft
from support.rig import outcome, restored, rig, twin_of

from trainer import model as models
from trainer.adapters import methods
from trainer.data.examples import collate
from trainer.errors import ConfigError
from trainer.method_table import MethodTable
from trainer.results.export import export

TARGETS = {
    "phi": ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"],
    "falcon": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "t5": ["k", "o", "q", "v", "wi", "wo"],
    "flan-t5": ["k", "o", "q", "v", "wi_0", "wi_1", "wo"],
}
KINDS = ({"kind": "qlora"}, {"kind": "qdora"}, {"kind": "qdylora"}, {"kind": "nola", "bases": 16})


@pytest.mark.parametrize("kind", sorted(TARGETS))
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_targets_are_found_in_the_model(tmp_path: Path, kind: str, quant: str) -> None:
    """All linear layers but the head are found, quantised or not; others are refused by name."""
    make(kind, tmp_path / "model")
    method = {"kind": "lora" if quant == "none" else "qlora", "quant": quant}
    made = rig(tiny.make_run(tmp_path, rows=4, method=method))
    base = fresh_base(made)
    adapted = {
        name.rsplit(".", 1)[-1]
        for name, module in made.context.model.named_modules()
        if hasattr(module, "lora_A")
    }
    wrong = MethodTable.model_validate({**method, "targets": ["Wqkv"]})

    assert models.find_targets(base, MethodTable.model_validate(method)) == TARGETS[kind]
    assert sorted(adapted) == TARGETS[kind]
    with pytest.raises(ConfigError, match=f"called Wqkv; it has {', '.join(TARGETS[kind])}"):
        models.find_targets(base, wrong)


@pytest.mark.parametrize(
    ("kind", "method"), [("t5", KINDS[0]), *(("flan-t5", method) for method in KINDS)]
)
def test_an_encoder_decoder_resumes_to_the_same_bits(
    tmp_path: Path, kind: str, method: dict[str, Any]
) -> None:
    """T5 learns in the loop of the others, is stopped in the middle, and ends with equal bits."""
    make(kind, tmp_path / "model")
    run = tiny.make_run(
        tmp_path, rows=12, method={"dropout": 0.1, **method}, train={"steps": 6, "micro_batch": 2}
    )
    whole = rig(run)
    whole.train(until=6)
    twin = twin_of(whole, tmp_path / "twin")
    first = rig(twin)
    first.train(until=3)
    first.save()
    second = restored(twin)
    second.train(until=6)
    record = tiny.losses(run)

    assert outcome(whole) == outcome(second)
    assert record[-1]["loss"] < record[0]["loss"]


@pytest.mark.parametrize(
    ("kind", "method"), list(zip(("phi", "falcon", "llama", "t5"), KINDS, strict=True))
)
def test_every_architecture_ends_in_plain_peft(
    tmp_path: Path, kind: str, method: dict[str, Any]
) -> None:
    """After some steps the exported adapter gives in plain PEFT the logits of the model."""
    make(kind, tmp_path / "model")
    made = rig(tiny.make_run(tmp_path, rows=8, method=method, train={"steps": 3}))
    made.train(until=3)
    ours = methods.method_of(made.context.model)
    ours.materialize()
    (tmp_path / "adapter").mkdir()
    ours.save(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "plain")
    loaded = plain_peft(made, tmp_path / "plain")
    expected = logits(made.context.model, made)

    torch.testing.assert_close(logits(loaded, made), expected, rtol=0, atol=1e-5)


def test_t5_reads_no_padding(tmp_path: Path) -> None:
    """A row's loss is the same alone and beside longer rows, in encoder and decoder."""
    from trainer.loss import summed_cross_entropy

    make("flan-t5", tmp_path / "model")
    made = rig(tiny.make_run(tmp_path, rows=6, method={"dropout": 0.0}))
    made.context.model.eval()
    with torch.no_grad():
        alone = [
            summed_cross_entropy(made.context.model, collate([row], 3)).item()
            for row in made.context.examples
        ]
        together = summed_cross_entropy(
            made.context.model, collate(made.context.examples, 3)
        ).item()

    assert together == pytest.approx(sum(alone), rel=1e-5)
