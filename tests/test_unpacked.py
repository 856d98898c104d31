"""On a processor, values kept unpacked and fewer copies give the bits of bitsandbytes and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import make
from support.mixtures import make_mixture
from support.rig import Rig, outcome, rig, twin_of

from trainer.device.unpacked import unpack_base, unpackable, unpacked_bytes
from trainer.job import set_up
from trainer.kernels.fewer_copies import plain_adapter
from trainer.training.fit import apply_setup, available, current_setup
from trainer.training.saving_order import next_saving

TRAIN = {"steps": 3, "batch_size": 4}
CASES = [
    ("phi", {"kind": "qlora"}),  # with biases
    ("falcon", {"kind": "qlora", "double_quant": False}),
    ("llama", {"kind": "qlora", "quant": "fp4", "alpha": 3}),
    ("llama", {"kind": "rslora", "quant": "nf4"}),
    ("llama", {"kind": "lora", "quant": "none"}),
    ("llama", {"kind": "qdora"}),
    ("llama", {"kind": "qdylora"}),
    ("llama", {"kind": "nola", "quant": "nf4", "bases": 8}),
    ("llama", {"kind": "miss", "quant": "none"}),
    ("llama", {"kind": "qlora", "quant": "int8"}),
    ("flan-t5", {"kind": "qlora"}),
    ("qwen3_moe", {"kind": "qlora", "targets": ["q_proj", "o_proj"]}),
]


def kept(made: Rig) -> int:
    """How many layers of a training compute from unpacked values."""
    layers = [one for one in made.context.model.modules() if type(one).__name__ == "Linear4bit"]
    return sum("forward" in vars(one) and not hasattr(one, "lora_A") for one in layers)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_no_bit_differs(
    tmp_path: Path, kind: str, method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradient norms, adapter and moments are those of the libraries' own layers."""
    if kind == "qwen3_moe":
        make_mixture(tmp_path / "model")
    else:
        make(kind, tmp_path / "model")
    made = rig(write_run(tmp_path, method))
    made.train(until=3)
    monkeypatch.setattr(set_up, "spare_on_cpu", lambda *_arguments: None)
    plain = rig(twin_of(made, tmp_path / "plain"))
    plain.train(until=3)

    assert outcome(made) == outcome(plain)
    assert (kept(made) > 0) == (method.get("quant", "nf4") in {"nf4", "fp4"})
    assert kept(plain) == 0


def write_run(tmp_path: Path, method: dict[str, Any]) -> Path:
    """Lay out a run whose method is exactly this one."""
    config = tiny.make_config(
        tmp_path / "model", tiny.make_rows(tmp_path / "train.jsonl", 12), train=TRAIN
    )
    scale = {} if method["kind"] == "miss" else {"alpha": 8}
    table = {"r": 4, "dropout": 0.1, **scale, **method}
    return tiny.write_config(tmp_path / "run", {**config, "method": table})


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A training in 4 bits of which one step is done."""
    directory = tmp_path_factory.mktemp("learnt")
    make("phi", directory / "model")
    made = rig(write_run(directory, {"kind": "qlora"}))
    made.train(until=1)
    return made


def test_values_are_kept_only_where_memory_is_plenty(learnt: Rig) -> None:
    """They may take half of what is free; where nobody says what is free, nothing is kept."""
    assert learnt.context.unpacked is not None
    size = learnt.context.unpacked.bytes
    learnt.context.unpacked.release()
    layers = list(unpackable(learnt.context.model))

    assert size == unpacked_bytes(layers) > 0
    assert unpack_base(layers, free_bytes=2 * size - 1) is None
    assert unpack_base(layers, free_bytes=None) is None
    assert unpack_base(list(unpackable(torch.nn.Linear(2, 2))), free_bytes=1 << 40) is None
    again = unpack_base(layers, free_bytes=2 * size)
    assert again is not None
    assert again.is_held
    assert list(unpackable(learnt.context.model)) == []  # nothing is unpacked twice
    again.release()
    again.release()
    assert not again.is_held
    assert kept(learnt) == 0


def test_another_weight_is_unpacked_as_ever(learnt: Rig) -> None:
    """A layer whose weight was replaced, as PEFT does to merge, computes with the new one."""
    unpacked = unpack_base(list(unpackable(learnt.context.model)), free_bytes=1 << 40)
    assert unpacked is not None
    layer: Any = next(one for one in learnt.context.model.modules() if hasattr(one, "lora_A"))
    base, inputs = layer.get_base_layer(), torch.ones(1, 3, layer.in_features)
    before, weight = base(inputs), base.weight
    base.weight = type(weight)(torch.zeros(base.out_features, base.in_features), **facts(weight))
    base.weight = base.weight.to("cpu")
    after = base(inputs)
    base.weight = weight
    unpacked.release()

    assert not torch.equal(before, after)
    assert torch.equal(after, base.bias.expand_as(after))


def facts(weight: Any) -> dict[str, Any]:
    """How a weight is quantised."""
    return {"requires_grad": False, "quant_type": weight.quant_type}


def test_switched_off_and_merged_adapters_are_left_to_peft(learnt: Rig) -> None:
    """Without its adapter, and with it merged, the model computes as PEFT's layers do."""
    model = learnt.context.model.eval()
    ids = torch.tensor([[5, 9, 30, 7]])
    layers = [one for one in model.modules() if hasattr(one, "lora_A")]
    assert all(plain_adapter(one) == "default" for one in layers)
    with torch.no_grad():
        whole = model(ids).logits
        with model.disable_adapter():
            assert all(plain_adapter(one) is None for one in layers)
            bare = model(ids).logits
        own = {one: one.__dict__.pop("forward") for one in layers}
        same = model(ids).logits
        with model.disable_adapter():
            bare_same = model(ids).logits
    for layer, forward in own.items():
        layer.forward = forward
    model.train()

    assert torch.equal(whole, same)
    assert torch.equal(bare, bare_same)
    assert not torch.equal(whole, bare)


def test_unpacked_values_are_given_back_first(tmp_path: Path) -> None:
    """When memory runs short, the base is kept in 4 bits only before anything else is done."""
    make("llama", tmp_path / "model")
    made = rig(write_run(tmp_path, {"kind": "qlora"}))
    setup = current_setup(made.context, made.state)
    following = next_saving(setup, available(made.context, made.state))
    assert setup.unpacked
    assert following is not None
    changed, words = following
    apply_setup(made.context, made.state, changed)

    assert words.startswith("the base is kept in 4 bits only")
    assert changed.micro_batch == setup.micro_batch
    assert kept(made) == 0
    assert current_setup(made.context, made.state) == changed
    after = next_saving(changed, available(made.context, made.state))
    assert after is not None
    assert after[1].startswith("micro-batch 4 -> 2")
