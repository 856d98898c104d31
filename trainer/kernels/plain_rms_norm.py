"""RMSNorm and its gradient in plain operations: the reference of the fused kernel.

y = n * w with n = x / sqrt(mean(x²) + eps), in float32. Its gradient, with d = dL/dy * w:
dx = (d - n * mean(d * n)) / sqrt(mean(x²) + eps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Form:
    """Where an architecture rounds, and from where its weights are counted."""

    eps: float
    rounded: bool
    """n is rounded to the type of x before it is multiplied (LLaMA); or the product is (Gemma)."""
    offset: float
    """Added to the weights: 1 where they are stored as distances from 1 (Gemma)."""


def forms(eps: float) -> tuple[Form, ...]:
    """Return the forms that there are.

    They are those of LLaMA, Qwen, Mistral and Phi-3; of OLMo 2, GPT-OSS and Gemma 4; of Gemma 1 to
    3 and Qwen3-Next.
    """
    return (
        Form(eps=eps, rounded=True, offset=0.0),
        Form(eps=eps, rounded=False, offset=0.0),
        Form(eps=eps, rounded=False, offset=1.0),
    )


def plain_forward(
    x: torch.Tensor, weight: torch.Tensor, form: Form
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and 1/sqrt(mean(x²) + eps) [rows] of x [rows, columns]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1) + form.eps)
    normed = wide * scale[:, None]
    if form.rounded:
        normed = normed.to(x.dtype).float()
    return (normed * (weight.float() + form.offset)).to(x.dtype), scale


def plain_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, form: Form
) -> torch.Tensor:
    """Return dx of x [rows, columns]."""
    inner = dy.float() * (weight.float() + form.offset)
    if form.rounded:
        inner = inner.to(x.dtype).float()
    normed = x.float() * scale[:, None]
    mean = (inner * normed).mean(-1, keepdim=True)
    return (scale[:, None] * (inner - normed * mean)).to(x.dtype)
