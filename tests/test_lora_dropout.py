"""LoRA's dropout from seeds: nothing is kept but x, and PEFT's variants are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from support.small_loras import recompute_activations, with_lora
from torch.autograd.graph import saved_tensors_hooks

from trainer.kernels import lora_dropout
from trainer.kernels.equality import difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.lora_dropout import DropoutOps, LoraDropout, Mask, dropped_linear
from trainer.kernels.philox import philox
from trainer.kernels.plain_dropout import plain_dropped

SEED = 1 << 62


def make_model(**settings: Any) -> Any:
    """Return a LLaMA of two layers with a LoRA that drops 30 % on every linear layer."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = tf.LlamaForCausalLM(config)
    wanted = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.3} | settings
    return with_lora(base, **wanted).train()


def gradients(model: Any, kernel: LoraDropout, seed: int) -> dict[str, torch.Tensor]:
    """Return loss and gradients of a batch whose dropout has this seed."""
    model.zero_grad()
    ids = torch.arange(20).reshape(2, 10)
    torch.manual_seed(seed)
    with kernel.enabled({}):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **named}


@pytest.fixture
def prepared() -> tuple[Any, LoraDropout]:
    """A model, and the dropout of its 14 adapted layers."""
    model, kernel = make_model(), LoraDropout(lambda: lora_dropout.PLAIN)
    assert kernel.prepare(model) == 14
    return model, kernel


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors have the same bits."""
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_numbers_are_philox() -> None:
    """Counter 0 under key 0 gives the words that the authors of Philox-4x32-10 published."""
    words = philox(0, torch.zeros(1, dtype=torch.int64))

    assert [f"{int(word):08x}" for word in words[:, 0]] == [
        *("6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"),
    ]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p(p: float) -> None:
    """Of many elements about a share p is zero, and the mean of the rest makes up for it."""
    y = plain_dropped(torch.ones(300, 700), SEED + 5, p)

    assert abs(float((y == 0).float().mean()) - p) < 0.005
    assert abs(float(y.mean()) - 1.0) < 0.02 / (1 - p)


def test_a_mask_follows_from_its_seed_and_the_place() -> None:
    """The same seed drops the same places in a longer tensor, too; another seed drops others."""
    short, long = torch.ones(9, 100), torch.ones(200, 100)

    first = plain_dropped(short, SEED, 0.3)

    assert torch.equal(plain_dropped(long, SEED, 0.3)[:9], first)
    assert not torch.equal(plain_dropped(short, SEED + 1, 0.3), first)


def test_gradients_are_those_of_the_mask() -> None:
    """Both gradients are what autograd makes of the dropped input times the matrix."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 7, 40, generator=generator), torch.randn(5, 40, generator=generator)
    dh = torch.randn(3, 7, 5, generator=generator)
    mask = Mask(seed=SEED + 9, p=0.4, ops=lora_dropout.PLAIN)
    factor = mask.apply(torch.ones(x.shape))
    ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    autograd = [x.clone().requires_grad_(), weight.clone().requires_grad_()]

    h = dropped_linear(ours[0], ours[1], mask)
    h.backward(dh)  # type: ignore[no-untyped-call]
    expected = (autograd[0] * factor) @ autograd[1].t()
    expected.backward(dh)  # type: ignore[no-untyped-call]

    assert difference(h.detach(), expected.detach()) < 8
    for one, other in zip(ours, autograd, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert difference(one.grad, other.grad) < 8


def test_a_step_done_again_has_the_same_bits(prepared: tuple[Any, LoraDropout]) -> None:
    """The seed of the micro-batch decides, whatever was drawn in between; another gives others."""
    model, kernel = prepared

    first = gradients(model, kernel, 7)
    torch.rand(100)
    again = gradients(model, kernel, 7)
    other = gradients(model, kernel, 8)

    assert same(first, again)
    assert not torch.equal(first["loss"], other["loss"])


def test_a_recomputation_needs_no_generator(prepared: tuple[Any, LoraDropout]) -> None:
    """With activations computed again, and no state of a generator restored, no bit differs."""
    model, kernel = prepared
    kept = gradients(model, kernel, 7)

    recompute_activations(model, preserve_rng_state=False)
    again = gradients(model, kernel, 7)

    assert same(kept, again)


def test_layers_drop_different_places(prepared: tuple[Any, LoraDropout]) -> None:
    """Two layers of one shape, in one micro-batch, have masks of their own."""
    model, kernel = prepared
    layers = model.base_model.model.model.layers
    matrices = [layer.mlp.up_proj.lora_A["default"] for layer in layers]
    torch.manual_seed(1)

    with torch.no_grad(), kernel.enabled({}):
        for matrix in matrices:
            matrix.weight.fill_(1.0)
        one, other = (matrix(torch.ones(4, 32)) for matrix in matrices)

    assert not torch.equal(one, other)


def test_no_mask_and_no_copy_is_kept() -> None:
    """For the backward pass three layers that read one x keep x once, and nothing of its size."""
    x = torch.randn(50, 40, requires_grad=True)
    weights = [torch.randn(5, 40, requires_grad=True) for _ in range(3)]
    kept: set[int] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= x.numel():
            kept.add(tensor.data_ptr())
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        for number, weight in enumerate(weights):
            dropped_linear(x, weight, Mask(seed=SEED + number, p=0.1, ops=lora_dropout.PLAIN))

    assert kept == {x.data_ptr()}


def test_an_answer_drops_nothing(prepared: tuple[Any, LoraDropout]) -> None:
    """In eval mode, and outside, the model computes what it always does."""
    model, kernel = prepared
    ids = torch.arange(20).reshape(2, 10)
    model.eval()

    with torch.no_grad():
        plain = model(ids).logits
        with kernel.enabled({}):
            fused = model(ids).logits

    assert torch.equal(fused, plain)
    assert not any("forward" in vars(module) for module in model.modules())


def test_hooks_on_the_first_matrix_apply(prepared: tuple[Any, LoraDropout]) -> None:
    """What DyLoRA cuts off by a hook on A stays cut off: B gets no gradient for it."""
    model, kernel = prepared
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            module.lora_A["default"].register_forward_hook(
                lambda _module, _inputs, output: output * torch.tensor([1.0, 1.0, 0.0, 0.0])
            )

    found = gradients(model, kernel, 3)

    ours = [grad for name, grad in found.items() if "lora_B" in name]
    assert len(ours) == 14
    assert all(grad[:, :2].any() and not grad[:, 2:].any() for grad in ours)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.0}])
def test_what_is_no_plain_dropped_lora_is_refused(settings: dict[str, Any]) -> None:
    """DoRA gives the dropped input to other products, too; without dropout there is nothing."""
    kernel = LoraDropout(lambda: lora_dropout.PLAIN)
    card = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)
    model = make_model(**settings)

    assert kernel.unsuitable(model, card) == "no plain LoRA layer has a dropout"
    assert kernel.prepare(model) == 0


def test_a_wrong_mask_fails_the_proof() -> None:
    """A mask of another seed, and a scale that is forgotten, are both noticed."""
    card = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)

    def shifted(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
        return plain_dropped(x, seed + 1, p)

    def unscaled(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
        return plain_dropped(x, seed, p) * (1 - p)

    proofs = [
        LoraDropout(lambda ops=ops: DropoutOps(dropped=ops)).prove(card)  # type: ignore[misc]
        for ops in (plain_dropped, shifted, unscaled)
    ]

    assert proofs[0] is None
    assert str(proofs[1]).startswith("the mask of LoRA's dropout 1x64")
    assert str(proofs[2]).startswith("h of LoRA's dropout 1x64")
