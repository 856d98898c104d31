"""LoRA's update as one function: the values of PEFT, which still computes what is special."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from support.small_loras import recompute_activations, with_lora

from trainer.kernels import lora_dropout
from trainer.kernels.candidates import make_fused_kernels
from trainer.kernels.equality import difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.lora_dropout import LoraDropout
from trainer.kernels.lora_linear_function import LoraLinear, Update, add_update

CPU = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)


def make_model(*, family: str = "llama", **settings: Any) -> Any:
    """Return a small model with a LoRA on every linear layer."""
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(
        family,
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=2,
    )
    wanted = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | settings
    return with_lora(tf.AutoModelForCausalLM.from_config(config), **wanted).train()


def gradients(model: Any, kernel: Any = None, *, seed: int = 7) -> dict[str, torch.Tensor]:
    """Return loss and gradients of a batch, with a kernel or in PEFT's own way."""
    model.zero_grad()
    ids = torch.arange(3, 23).reshape(2, 10)
    torch.manual_seed(seed)
    with kernel.enabled({}) if kernel is not None else torch.enable_grad():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **named}


def prepared(model: Any) -> LoraLinear:
    """Return the kernel, prepared, that makes masks in plain operations."""
    kernel = LoraLinear(lambda: lora_dropout.PLAIN)
    assert kernel.prepare(model) > 0
    return kernel


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two results, in roundings."""
    assert one.keys() == other.keys()
    return max(difference(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "phi3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_model_learns_as_peft_lets_it(family: str, rslora: bool) -> None:  # noqa: FBT001
    """Loss and gradients are PEFT's, with and without biases, and nothing stays changed."""
    model = make_model(family=family, use_rslora=rslora)
    plain = gradients(model)

    fused = gradients(model, prepared(model))

    assert len(plain) > 12
    assert farthest(fused, plain) < 400
    assert farthest(gradients(model), plain) == 0.0


def test_autocast_casts_what_peft_would_cast() -> None:
    """Under bfloat16 the update is within its roundings of PEFT's, and gradients are float32."""
    model = make_model().bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    kernel = prepared(model)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fused = gradients(model), gradients(model, kernel)

    assert all(value.dtype is torch.float32 for name, value in fused.items() if "lora" in name)
    worst = max(float((fused[n] - plain[n]).norm() / plain[n].norm()) for n in plain)
    assert worst < 0.05


def test_it_drops_by_the_same_seeds_as_dropout_alone() -> None:
    """With dropout, both kernels learn alike; done again, and activations again, no bit differs."""
    model = make_model(lora_dropout=0.3)
    alone = LoraDropout(lambda: lora_dropout.PLAIN)
    alone.prepare(model)
    model.eval()
    kernel = prepared(model)
    model.train()

    fused = gradients(model, kernel)

    assert farthest(fused, gradients(model, alone)) < 400
    assert farthest(gradients(model, kernel), fused) == 0.0
    assert not torch.equal(gradients(model, kernel, seed=8)["loss"], fused["loss"])
    recompute_activations(model, preserve_rng_state=False)
    assert farthest(gradients(model, kernel), fused) == 0.0


def test_an_adapter_that_is_switched_off_adds_nothing() -> None:
    """Inside `disable_adapter`, the logits are the base's."""
    model = make_model()
    kernel, ids = prepared(model), torch.arange(20).reshape(2, 10)

    with torch.no_grad(), model.disable_adapter():
        plain = model(ids).logits
        with kernel.enabled({}):
            fused = model(ids).logits

    assert torch.equal(fused, plain)


def test_what_peft_must_compute_is_left_to_it() -> None:
    """DoRA, a bias of LoRA, and a hook on a matrix (DyLoRA's) are refused in words."""
    hooked = make_model()
    for module in hooked.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].register_forward_hook(lambda _module, _inputs, h: h)
    kernel = LoraLinear(lambda: lora_dropout.PLAIN)
    models = [make_model(use_dora=True), make_model(family="phi", lora_bias=True), hooked]

    refusals = {kernel.unsuitable(model, CPU) for model in models}

    assert refusals == {"there is no plain LoRA layer without hooks"}
    assert [kernel.prepare(model) for model in models] == [0, 0, 0]
    assert kernel.unsuitable(make_model(), CPU) is None
    assert LoraLinear().unsuitable(make_model(), CPU) == "it needs a CUDA card"


def test_an_output_that_is_a_view_is_not_written_to() -> None:
    """What y was cut from keeps its values."""
    whole = torch.randn(6, 8)
    before = whole.clone()
    x, a, b = torch.randn(6, 5), torch.randn(2, 5), torch.randn(4, 2)

    y = add_update(whole[:, :4], x, a, b, Update(scaling=2.0))

    assert torch.equal(whole, before)
    assert difference(y, whole[:, :4] + 2.0 * x @ a.t() @ b.t()) < 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_function_passes_its_own_proof(dtype: torch.dtype) -> None:
    """It is as close to PEFT's order of operations as the proof on a card demands."""
    card = Card(device=torch.device("cpu"), capability=None, dtype=dtype)

    assert LoraLinear(lambda: lora_dropout.PLAIN).prove(card) is None


def test_of_two_ways_to_compute_lora_one_is_used() -> None:
    """Both ways have one name, of which the first that suits is taken; no other is there twice."""
    kernels = [(kernel.name, kernel.version) for kernel in make_fused_kernels()]

    assert [version for name, version in kernels if name == "lora_linear"] == [
        *("addmm-1", "seeded-dropout-1"),
    ]
    assert len({name for name, _ in kernels}) == len(kernels) - 1
    assert len(set(kernels)) == len(kernels)
