"""An adapter of experts, merged into a base, is the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from support import tiny
from support.mixtures import FAMILIES, make_mixture
from support.models import PROMPTS, load

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters import methods
from trainer.config import TrainerConfig
from trainer.device.precision import choose_precision
from trainer.results.expert_merge import ExpertLayout, empty_model
from trainer.results.export import export

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
ROUNDING = 1e-5
CPU = torch.device("cpu")


def trained(place: Path, family: str, **method: Any) -> Any:
    """Lay out a run on a mixture in `place`; return base and a random adapter as training has."""
    make_mixture(place / "model", family, max_shard_size="40KB")
    tables = tiny.make_config(
        place / "model",
        place / "rows.jsonl",
        method={"kind": "qlora", "dropout": 0.0, **method},
    )
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
        for parameter in models.trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (place / "adapter").mkdir()
    methods.method_of(model).save(place / "adapter")
    return model.eval()


def merged(place: Path, merge_base: str) -> Any:
    """Merge the saved adapter in float32, as the program does, and load the result."""
    places = {"base": "model", "adapter": "adapter", "run-dir": "run", "out": f"on-{merge_base}"}
    words = [word for flag, at in places.items() for word in (f"--{flag}", str(place / at))]
    assert main(["merge", *words, "--onto", merge_base, "--dtype", "float32"]) == 0
    return load(place / f"on-{merge_base}").eval()


def apart(one: Any, other: Any) -> float:
    """Return the largest difference of the logits of two models."""
    with torch.no_grad():
        gaps = [
            (one(torch.tensor([ids])).logits - other(torch.tensor([ids])).logits).abs().max()
            for ids in PROMPTS
        ]
    return float(max(gaps))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_merged_into_the_quantised_base_is_the_trained_one(
    tmp_path: Path, family: str
) -> None:
    """Its logits are those of the training, though its files hold every expert apart."""
    model = trained(tmp_path, family)

    assert apart(model, merged(tmp_path, "quantized")) < ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_in_its_original_base_equals_peft(tmp_path: Path, family: str) -> None:
    """Plain PEFT on the 16-bit base gives the same logits, and the files have the same tensors."""
    trained(tmp_path, family)
    plain = peft.PeftModel.from_pretrained(load(tmp_path / "model"), str(tmp_path / "adapter"))

    assert apart(plain.eval(), merged(tmp_path, "original")) < ROUNDING
    assert tensors(tmp_path / "on-original") == tensors(tmp_path / "model")


def tensors(place: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in the files of a model."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(place.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def test_experts_that_are_not_adapted_are_still_quantised_ones(tmp_path: Path) -> None:
    """Merged onto the quantised base, frozen experts have the values that training read."""
    model = trained(tmp_path, "qwen3_moe", targets=["q_proj"], double_quant=False)

    assert apart(model, merged(tmp_path, "quantized")) < ROUNDING
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
        "target_parameters"
    ] in (None, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_of_experts_is_put_together_as_transformers_does(
    tmp_path: Path, family: str
) -> None:
    """The parts in the files, joined, are the tensor of the model that transformers loads."""
    make_mixture(tmp_path, family)
    loaded = dict(load(tmp_path).named_parameters())
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        layout = ExpertLayout(empty_model(tmp_path), set(file.keys()))
        joined = {name: layout.join(name, file.get_tensor) for name in layout.shapes}

    assert len(joined) >= 2
    assert all(torch.equal(stack, loaded[name]) for name, stack in joined.items())


def test_an_exported_adapter_of_experts_is_the_same_adapter(tmp_path: Path) -> None:
    """Plain PEFT loads the export with the rank of the run, and gives the same logits."""
    trained(tmp_path, "qwen3_moe", r=3)
    export(tmp_path / "adapter", tmp_path / "plain")
    models_of = [
        peft.PeftModel.from_pretrained(load(tmp_path / "model"), str(tmp_path / name)).eval()
        for name in ("adapter", "plain")
    ]

    assert models_of[1].peft_config["default"].r == 3
    assert apart(*models_of) == 0.0
