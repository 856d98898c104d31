"""Merged onto the base that training quantised, a model is the very one that was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from bitsandbytes.functional import dequantize_4bit
from support import tiny
from support.models import PROMPTS, gpt2, make_falcon, t5

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters import methods
from trainer.config import TrainerConfig
from trainer.device.precision import choose_precision
from trainer.results.merge_check import compare_models

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]
ROUNDING = 1e-5
CPU = torch.device("cpu")


def short_gpt2(directory: Path) -> None:
    """Write a GPT-2 as it lies on the hub: `transformer.` is not in front of its names."""
    gpt2(directory).transformer.save_pretrained(str(directory), max_shard_size="40KB")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["GPT2LMHeadModel"]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def load(place: Path) -> Any:
    """Load a model in float32, of whichever family."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = json.loads((place / "config.json").read_text(encoding="utf-8"))["model_type"] == "t5"
    family = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return family.from_pretrained(str(place), dtype=torch.float32)


def trained(place: Path, make: Callable[[Path], Any], **method: Any) -> Any:
    """Lay out a run in `place`, and return base and a random adapter as training has them."""
    make(place / "model")
    tables = tiny.make_config(place / "model", place / "rows.jsonl", method=method)
    tiny.write_config(place / "run", tables)
    config = TrainerConfig.model_validate(tables)
    source = models.find_source(config.model, place / "run")
    arithmetic = choose_precision(
        config.train.precision, device="cpu", capability=None, seq2seq=False
    )
    base = models.load_base(source, config.method, precision=arithmetic, device=CPU)
    model = models.attach_adapter(base, config.method, config.train)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in models.trainable(model).items():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.1))
    (place / "adapter").mkdir()
    methods.method_of(model).save(place / "adapter")
    return model.eval()


def merged(place: Path, merge_base: str = "quantized", code: int = 0) -> Path:
    """Merge the saved adapter in float32, as the program does; return the model's directory."""
    places = {"base": "model", "adapter": "adapter", "run-dir": "run", "out": f"on-{merge_base}"}
    words = [word for flag, at in places.items() for word in (f"--{flag}", str(place / at))]
    assert main(["merge", *words, "--onto", merge_base, "--dtype", "float32"]) == code
    return place / f"on-{merge_base}"


def apart(model: Any, place: Path) -> tuple[float, float]:
    """How far a merged model is from the trained one: share of equal answers, and of logits."""
    found = compare_models(model, load(place), PROMPTS, tokens_max=6, eos_id=1)
    return found["share"], found["logits_difference_max"]


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (tiny.make_model, {}),
        (tiny.make_model, {"double_quant": False}),
        (tiny.make_model, {"quant": "fp4", "targets": ["q_proj"]}),
        (tiny.make_model, {"kind": "qdora"}),
        (short_gpt2, {"kind": "qdora", "targets": ["c_attn", "c_fc"]}),
        (make_falcon, {"quant": "fp4", "double_quant": False}),
        (t5, {}),
    ],
    ids=["nf4", "single", "subset", "dora", "gpt2", "falcon", "t5"],
)
def test_merged_into_four_bits_it_is_the_trained_model(
    make: Callable[[Path], Any], method: dict[str, Any], tmp_path: Path
) -> None:
    """Only float32's rounding is between them, but much more with the 16-bit base below it."""
    model = trained(tmp_path, make, **{"kind": "qlora", **method})
    share, gap = apart(model, merged(tmp_path))

    assert (share, gap < ROUNDING) == (1.0, True)
    assert apart(model, merged(tmp_path, "original"))[1] > 100 * ROUNDING


def test_merged_into_eight_bits_it_is_near_the_trained_model_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are the int8 ones to the bit, but in training inputs were rounded as well."""
    model = trained(tmp_path, tiny.make_model, kind="qlora", quant="int8", targets=["q_proj"])
    state = load(merged(tmp_path)).state_dict()
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    stored = layer.weight.data.float() * layer.weight.SCB[:, None] / 127

    torch.testing.assert_close(
        state["model.layers.0.mlp.up_proj.weight"], stored, rtol=1e-6, atol=0
    )
    assert "int8 also rounds what goes into a layer" in capsys.readouterr().err


@pytest.fixture
def any_precision() -> Iterator[None]:
    """Let this process train in another precision: accelerate keeps to the first one otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("any_precision")
def test_the_base_is_rounded_first_as_it_was_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a training in bfloat16, which the adapter tells, every weight is its one to the bit."""
    make_falcon(tmp_path / "model")
    rows = tiny.make_rows(tmp_path / "rows.jsonl", 8)
    tables = tiny.make_config(
        tmp_path / "model", rows,
        method={"kind": "qlora", "targets": ["dense"]}, train={"steps": 1, "precision": "bf16"},
    )  # fmt: skip
    run = tiny.write_config(tmp_path / "run", tables)
    assert main(["train", "--run-dir", str(run)]) == 0
    assert json.loads((run / "adapter" / "qft.json").read_text())["precision"] == "bf16"
    tiny.write_config(run, {**tables, "train": {**tables["train"], "precision": "auto"}})
    (tmp_path / "adapter").symlink_to(run / "adapter")
    state = load(merged(tmp_path)).state_dict()
    config = TrainerConfig.model_validate(tables)
    arithmetic = choose_precision(
        config.train.precision, device="cpu", capability=None, seq2seq=False
    )
    source = models.find_source(config.model, run)
    base = models.load_base(source, config.method, precision=arithmetic, device=CPU)
    adapter = peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    layers = list(models.four_bit_layers(adapter.get_base_model()))

    assert "does not tell" not in capsys.readouterr().err
    assert len(layers) == 8
    for name, layer in layers:
        expected = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        owner = adapter.get_base_model().get_submodule(name.removesuffix(".base_layer"))
        if owner is not layer:
            expected += owner.get_delta_weight("default").float()
        assert torch.equal(state[name.replace(".base_layer", "") + ".weight"], expected), name


def test_a_run_without_quantisation_and_a_base_of_other_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is merged onto something else silently: it is said why, and nothing is left."""
    from safetensors.torch import load_file, save_file

    trained(tmp_path, tiny.make_model, kind="qlora", targets=["q_proj"])
    weights = tmp_path / "model" / "model.safetensors"
    renamed = {k.replace("up_proj", "up_up"): v for k, v in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    merged(tmp_path, code=78)
    table = json.loads((tmp_path / "run" / "config.json").read_text())
    tiny.write_config(tmp_path / "run", {**table, "method": {"kind": "lora"}})
    left = merged(tmp_path, code=78)
    output = capsys.readouterr().err

    assert (
        "have no model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight (2" in output
    )
    assert "method.quant: lora was trained on a base that is not quantised" in output
    assert not left.exists()
