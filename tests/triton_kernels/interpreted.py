"""Runs every kernel's own proof, and a small model with all of them, in Triton's interpreter.

It computes on a processor what the kernels say, element by element, not what a compiler makes of
them. Of bfloat16 it cuts off bits instead of rounding, hence up to one rounding of difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from support.small_loras import with_lora

from trainer.kernels.candidates import make_fused_kernels
from trainer.kernels.equality import difference
from trainer.kernels.kernel_set import Card, KernelSet
from trainer.loss import summed_cross_entropy

TYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDINGS_MAX = 400  # of float32, through a whole model and back


def check(write: Callable[[str], Any]) -> list[str]:
    """Return what differs from the plain way; `write` gets a line for each proof."""
    problems = []
    for dtype in TYPES:
        card = Card(device=torch.device("cpu"), capability=None, dtype=dtype)
        for kernel in make_fused_kernels():
            found = kernel.prove(card)
            write(f"{kernel.name} ({kernel.version}) in {dtype}: {found or 'equal'}\n")
            if found is not None:
                problems.append(found)
    for found in model_differences():
        write(f"a small model with all kernels: {found or 'equal'}\n")
        if found is not None:
            problems.append(found)
    return problems


def model_differences() -> Iterator[str | None]:
    """Compare loss and gradients with those of plain operations, with and without dropout."""
    for dropout in (0.0, 0.3):
        model = make_model(dropout)
        kernels = [kernel for kernel in make_fused_kernels() if kernel.prepare(model)]
        if dropout:  # drawn by another generator: compare it with itself
            first, other = (outcome(model, KernelSet(kernels=tuple(kernels))) for _ in range(2))
            differs = [name for name in first if not torch.equal(first[name], other[name])]
            yield f"with dropout, {differs[0]} has other bits" if differs else None
            continue
        head_loss = next(one.head_loss for one in kernels if hasattr(one, "head_loss"))
        fused = outcome(model, KernelSet(kernels=tuple(kernels), head_loss=head_loss))
        plain = outcome(model, KernelSet())
        worst = max(plain, key=lambda name: difference(fused[name], plain[name]))
        apart = difference(fused[worst], plain[worst])
        yield None if apart <= ROUNDINGS_MAX else f"{worst} is {apart:.3g} roundings away"


def outcome(model: Any, kernels: KernelSet) -> dict[str, torch.Tensor]:
    """Return the loss of two rows and the gradient of every trained parameter."""
    model.zero_grad()
    ids = torch.arange(3, 27).reshape(2, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    torch.manual_seed(6)
    with kernels.enabled(batch):
        loss = summed_cross_entropy(model, batch, kernels)
        loss.backward()  # type: ignore[no-untyped-call]
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"the loss": loss.detach(), **named}


def make_model(dropout: float) -> Any:
    """Return a LLaMA of two layers with a LoRA."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = transformers.LlamaForCausalLM(config)
    return with_lora(base, r=4, target_modules="all-linear", lora_dropout=dropout).train()
