"""Head and cross-entropy in one: the float32 loss, with no logits kept, for plain frozen heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from support.small_loras import with_lora
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from trainer.kernels import linear_cross_entropy as module
from trainer.kernels.equality import difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.linear_cross_entropy import (
    CrossEntropyOps,
    LinearCrossEntropy,
    Way,
    chunk_rows,
    head_problem,
    linear_cross_entropy,
    plain_losses,
)

CPU = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)
TARGETS, HIDDEN, VOCABULARY = 23, 48, 701


def make_head(*, bias: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    """Return a frozen head."""
    torch.manual_seed(3)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    head.weight.data.mul_(6)
    return head.to(dtype).requires_grad_(requires_grad=False)


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states that need a gradient, and the token ids that they should give."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TARGETS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(VOCABULARY, (TARGETS,), generator=generator)


def gradient(loss: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return what hidden states get of the mean loss."""
    (found,) = torch.autograd.grad(loss / TARGETS, hidden)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, TARGETS])
def test_it_is_the_loss_of_the_plain_way(rows: int, bias: bool) -> None:  # noqa: FBT001
    """Loss and gradient are those of head and cross-entropy, however many rows go together."""
    head, (hidden, targets) = make_head(bias=bias), make_inputs()
    expected = cross_entropy(head(hidden).float(), targets, reduction="sum")
    way = Way(ops=module.PLAIN, dtype=torch.float32, chunk_bytes=4 * VOCABULARY * rows)

    loss = linear_cross_entropy(hidden, head, targets, way)

    assert loss.dtype is torch.float32
    assert difference(loss.detach(), expected.detach()) < 4
    assert difference(gradient(loss, hidden), gradient(expected, hidden)) < 32


def test_the_loss_is_summed_in_float32() -> None:
    """Under bfloat16 the loss equals that of the same logits in float64, to float32's precision."""
    head = make_head(bias=False, dtype=torch.bfloat16)
    hidden, targets = make_inputs(torch.bfloat16)
    logits = torch.nn.functional.linear(hidden, head.weight)
    expected = cross_entropy(logits.detach().double(), targets, reduction="sum")

    loss = LinearCrossEntropy(lambda: module.PLAIN).head_loss(hidden, head, targets)

    assert difference(loss.detach(), expected.float()) < 4
    assert gradient(loss, hidden).dtype is torch.bfloat16


def test_small_slopes_survive_float16() -> None:
    """Under a loss scale, gradients in float16 stay as close to float32's as bfloat16's are."""
    wide_head, (wide, targets) = make_head(bias=False), make_inputs()
    expected = gradient(cross_entropy(wide_head(wide), targets, reduction="sum") * 2**10, wide)
    head, (hidden, _) = make_head(bias=False, dtype=torch.float16), make_inputs(torch.float16)

    loss = LinearCrossEntropy(lambda: module.PLAIN).head_loss(hidden, head, targets)

    found = gradient(loss * 2**10, hidden)
    assert difference(found.float(), expected) * torch.finfo(torch.float32).eps < 0.005


def test_autocast_decides_the_type_of_the_product() -> None:
    """Under autocast the loss is that of a linear layer under autocast, and float32 itself."""
    head, (hidden, targets) = make_head(bias=True), make_inputs()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = cross_entropy(head(hidden).float(), targets, reduction="sum")
        loss = LinearCrossEntropy(lambda: module.PLAIN).head_loss(hidden, head, targets)

    assert loss.dtype is torch.float32
    assert abs(float(loss.detach() / expected.detach()) - 1) < 1e-3
    apart = difference(gradient(loss, hidden).bfloat16(), gradient(expected, hidden).bfloat16())
    assert apart < 4


def test_no_logits_are_kept() -> None:
    """For the backward pass one tensor is kept, of the size of the hidden states."""
    head, (hidden, targets) = make_head(bias=False), make_inputs()
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        LinearCrossEntropy(lambda: module.PLAIN).head_loss(hidden, head, targets)

    assert kept == [(TARGETS, HIDDEN)]


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001])
def test_stretches_are_even(count: int) -> None:
    """All positions go through in stretches below the limit, the last about as long as the rest."""
    weight = torch.empty(100, 4)

    rows = chunk_rows(count, weight, 400 * 250)

    assert rows <= 250
    assert count <= rows * max(1, -(-count // 250))


def make_model(**settings: Any) -> Any:
    """Return a LLaMA of one layer with a LoRA."""
    config = tf.LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return with_lora(tf.LlamaForCausalLM(config), r=2, **settings)


def test_only_a_plain_frozen_head_is_computed() -> None:
    """A head that is trained, adapted, quantised or hooked would be computed wrongly: refused."""
    plain = make_model(target_modules=["q_proj"])
    trained = make_model(target_modules=["q_proj"])
    trained.get_base_model().lm_head.requires_grad_(requires_grad=True)
    whole = make_model(target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = make_model(target_modules=["q_proj", "lm_head"])
    hooked = make_model(target_modules=["q_proj"])
    hooked.get_base_model().lm_head.register_forward_hook(lambda *_: None)

    assert head_problem(plain) is None
    assert head_problem(trained) == "the head is trained"
    assert head_problem(whole) == "the head is a ModulesToSaveWrapper, not a plain linear layer"
    assert head_problem(adapted) == "the head is a Linear of PEFT, not a plain linear layer"
    assert head_problem(hooked) == "something else changes what the head computes"
    kernel = LinearCrossEntropy(lambda: module.PLAIN)
    assert (kernel.unsuitable(plain, CPU), kernel.prepare(plain)) == (None, 1)
    assert (kernel.unsuitable(trained, CPU), kernel.prepare(trained)) == ("the head is trained", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_formulas_pass_the_proof_of_themselves(dtype: torch.dtype) -> None:
    """The proof accepts the formulas in every type."""
    card = Card(device=torch.device("cpu"), capability=None, dtype=dtype)

    assert LinearCrossEntropy(lambda: module.PLAIN).prove(card) is None


def test_a_wrong_kernel_fails_its_proof() -> None:
    """A gradient whose target is one place off, and a loss without the target's logit: named."""

    def shifted(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        right = plain_losses(logits.clone(), targets, scale=1.0, gradient=False)
        plain_losses(logits, (targets + 1) % logits.shape[1], **options)
        return right

    def truncated(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        return plain_losses(logits, targets, **options).bfloat16().float()

    proofs = [
        LinearCrossEntropy(lambda ops=ops: CrossEntropyOps(losses=ops)).prove(CPU)  # type: ignore[misc]
        for ops in (shifted, truncated)
    ]

    assert str(proofs[0]).startswith("the gradient of logits of cross-entropy over 320 tokens")
    assert str(proofs[1]).startswith("the loss of cross-entropy over 320 tokens")
