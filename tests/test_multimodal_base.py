"""Of a base that also sees, only what reads text is adapted, measured and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from support import tiny
from support.adapters import fresh_base
from support.models import PROMPTS
from support.multimodal import TEXT, TEXT_ALONE, WHOLE, make_multimodal
from support.rig import outcome, restored, rig, twin_of

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters import methods, quantise
from trainer.errors import ConfigError
from trainer.method_table import MethodTable

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
QLORA = {"kind": "qlora", "r": 2, "dropout": 0.0}
CAUSAL = ("gemma3", "gemma4", *TEXT_ALONE)
"""What plain transformers loads with `AutoModelForCausalLM`; the rest with its tower only."""


def plain(place: Path, family: str) -> Any:
    """Load a base as anybody does who has never heard of us."""
    causal, whole = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    auto: Any = causal if family in CAUSAL else whole
    return auto.from_pretrained(str(place), dtype=torch.float32).eval()


def apart(one: Any, other: Any) -> float:
    """Return the largest difference of the logits of two models for texts."""
    with torch.no_grad():
        gaps = []
        for ids in PROMPTS:
            given = torch.tensor([ids])
            gaps.append((one(input_ids=given).logits - other(input_ids=given).logits).abs().max())
    return float(max(gaps))


@pytest.mark.parametrize("family", [*WHOLE, *TEXT_ALONE])
def test_only_the_text_model_is_adapted_and_merged(tmp_path: Path, family: str) -> None:
    """The adapter loads in plain PEFT on the same base, and merged it is the same model."""
    make_multimodal(tmp_path / "model", family)
    made = rig(tiny.make_run(tmp_path, rows=6, method=QLORA, train={"lr": 0.1}))
    made.train(until=2)
    adapted = models.trainable(made.context.model)
    (tmp_path / "adapter").mkdir()
    methods.method_of(made.context.model).save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(
        plain(tmp_path / "model", family), str(tmp_path / "adapter")
    )
    loras = [name for name, _ in theirs.named_parameters() if "lora_" in name]
    places = {"base": "model", "adapter": "adapter", "out": "merged"}
    words = [word for flag, at in places.items() for word in (f"--{flag}", str(tmp_path / at))]

    assert all(".layers." in name or "per_layer" in name for name in adapted)
    assert not any("vision" in name or "visual" in name for name in adapted)
    assert sorted(loras) == sorted(adapted)
    assert main(["merge", *words, "--dtype", "float32"]) == 0
    assert apart(theirs.eval(), plain(tmp_path / "merged", family)) < 1e-5
    assert apart(theirs, plain(tmp_path / "model", family)) > 1e-3


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_a_multimodal_base_resumes_to_the_same_bits(tmp_path: Path, family: str) -> None:
    """An interrupted training of its text model ends as the undisturbed one."""
    make_multimodal(tmp_path / "model", family)
    whole = rig(tiny.make_run(tmp_path, rows=8, method=QLORA))
    whole.train(until=4)
    twin = twin_of(whole, tmp_path / "twin")
    first = rig(twin)
    first.train(until=2)
    first.save()
    second = restored(twin)
    second.train(until=4)

    assert outcome(whole) == outcome(second)


@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen3_vl"])
def test_places_of_a_picture_limit_no_text(tmp_path: Path, family: str) -> None:
    """Gemma 3's four places, LLaVA's five and Qwen3-VL's sixteen are those of pictures."""
    make_multimodal(tmp_path / "model", family)
    base = fresh_base(rig(tiny.make_run(tmp_path, rows=4, method=QLORA)))

    assert models.place_limit(base) is None
    models.require_places(base, TEXT["max_position_embeddings"])


def test_the_share_is_that_of_the_text_model(tmp_path: Path) -> None:
    """Gemma 3's matrices are counted by hand: attention and MLP of two layers, no tower."""
    make_multimodal(tmp_path / "model", "gemma3")
    base = fresh_base(rig(tiny.make_run(tmp_path, rows=4, method=QLORA)))
    share = quantise.measure(base, MethodTable.model_validate(QLORA).storage)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64

    assert (share.matrices, share.quantised_matrices) == (2 * layer, 2 * layer)
    assert share.quantised > share.quantised_matrices


def test_named_targets_are_those_of_the_text_model(tmp_path: Path) -> None:
    """`targets: [q_proj]` leaves the tower's layer of that name; a name of the tower is refused."""
    make_multimodal(tmp_path / "model", "gemma3")
    base = fresh_base(rig(tiny.make_run(tmp_path, rows=4, method=QLORA)))
    named = MethodTable.model_validate({**QLORA, "targets": ["q_proj"]})
    tower = MethodTable.model_validate({**QLORA, "targets": ["fc1"]})

    assert models.find_targets(base, named) == [
        f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(2)
    ]
    with pytest.raises(ConfigError, match=r"no linear layer called fc1; it has down_proj, gate"):
        models.find_targets(base, tower)
