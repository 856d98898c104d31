"""The head and the cross-entropy in one: logits exist in stretches only, and once.

With p = softmax(W h + b) in float32, the loss of a position is -log p[target], and the gradient of
its logits is p - 1 at the target and p elsewhere. So the gradient of h is at hand as soon as the
logits are: it is made at once, in the place of the logits, and they are neither kept nor computed
again. That holds for a frozen head only, which needs no gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from trainer.kernels.equality import REPEATS, find_difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.triton_card import triton_problem

CHUNK_BYTES = 256 << 20
"""Of logits, in the type that the head computes in: about 1,000 positions of a large vocabulary."""
FLOAT16_SCALE = 256.0
"""Lifts gradients of logits in float16: what it rounds to zero is then below 2e-10, not 6e-8."""
ROUNDINGS_MAX = 4.0
FLOAT32_ROUNDINGS_MAX = 256.0
"""Of sums over a vocabulary, whose terms may be added up in any order and cancel out."""


def plain_losses(
    logits: torch.Tensor, targets: torch.Tensor, *, scale: float, gradient: bool
) -> torch.Tensor:
    """Return the loss of each row in float32; with `gradient`, replace `logits` by its gradient.

    The gradient is multiplied by `scale`, a power of two.
    """
    wide = logits.float()
    total = wide.logsumexp(dim=-1)
    at = torch.arange(len(targets), device=targets.device)
    losses = total - wide[at, targets]
    if gradient:
        slope = torch.exp(wide - total[:, None]) * scale
        slope[at, targets] -= scale
        logits.copy_(slope)
    return losses


@dataclass(frozen=True, kw_only=True)
class CrossEntropyOps:
    """One way to compute `plain_losses`."""

    losses: Callable[..., torch.Tensor]


PLAIN = CrossEntropyOps(losses=plain_losses)


def triton_ops() -> CrossEntropyOps:
    """Return the way of the card."""
    from trainer.kernels import triton_cross_entropy

    return CrossEntropyOps(losses=triton_cross_entropy.losses)


class LinearCrossEntropyFunction(torch.autograd.Function):
    """The summed loss of hidden states [targets, hidden] through a frozen head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Any, targets: torch.Tensor, way: Way
    ) -> torch.Tensor:
        """Return the sum in float32."""
        weight, bias = head.weight.to(way.dtype), head.bias
        inputs, wanted = hidden.to(way.dtype), ctx.needs_input_grad[0]
        scale = FLOAT16_SCALE if way.dtype is torch.float16 else 1.0
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(inputs) if wanted else None
        rows = chunk_rows(len(targets), weight, way.chunk_bytes)
        buffer = torch.empty(rows, len(weight), dtype=way.dtype, device=hidden.device)
        for at in range(0, len(targets), max(1, rows)):
            cut = slice(at, min(at + rows, len(targets)))
            logits = buffer[: cut.stop - at]
            torch.mm(inputs[cut], weight.t(), out=logits)
            if bias is not None:
                logits += bias.to(way.dtype)
            losses[cut] = way.ops.losses(logits, targets[cut], scale=scale, gradient=wanted)
            if slope is not None:
                torch.mm(logits, weight, out=slope[cut])
        ctx.save_for_backward(slope)
        ctx.dtype, ctx.scale = hidden.dtype, scale
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the hidden states."""
        (slope,) = ctx.saved_tensors
        return (slope.float() * (d_loss / ctx.scale)).to(ctx.dtype), None, None, None


@dataclass(frozen=True, kw_only=True)
class Way:
    """How head and loss are computed: the type of the head's product, and its stretches."""

    ops: CrossEntropyOps
    dtype: torch.dtype
    chunk_bytes: int = CHUNK_BYTES


def chunk_rows(targets: int, weight: torch.Tensor, chunk_bytes: int) -> int:
    """Return how many positions go through the head together: as even as they can be."""
    most = max(1, chunk_bytes // (weight.shape[0] * weight.element_size()))
    chunks = max(1, -(-targets // most))
    return -(-targets // chunks)


def linear_cross_entropy(
    hidden: torch.Tensor, head: Any, targets: torch.Tensor, way: Way
) -> torch.Tensor:
    """Return the summed cross-entropy (float32, nats) of hidden states [targets, hidden]."""
    with torch.autocast(hidden.device.type, enabled=False):
        loss: torch.Tensor = LinearCrossEntropyFunction.apply(hidden, head, targets, way)  # type: ignore[no-untyped-call]
    return loss


class LinearCrossEntropy:
    """Computes head and loss in one; `head_loss` is what a `KernelSet` is given."""

    name = "linear_cross_entropy"
    version = "triton-1"

    def __init__(self, make_ops: Callable[[], CrossEntropyOps] = triton_ops) -> None:
        self._make_ops = make_ops

    def head_loss(self, hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed cross-entropy (float32, nats), with its graph; a `HeadLoss`.

        Under autocast the head's product is in the type that autocast gives a linear layer.
        """
        device = hidden.device.type
        casting = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casting else head.weight.dtype
        way = Way(ops=self._make_ops(), dtype=dtype)
        return linear_cross_entropy(hidden, head, targets, way)

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why it cannot be used: no such card, or a head that is trained or quantised."""
        problem = triton_problem(card) if self._make_ops is triton_ops else None
        return problem or head_problem(model)

    def prove(self, card: Card) -> str | None:
        """Compare losses and gradients, in one stretch and in several, with and without a bias."""
        ops = self._make_ops()
        repeats = REPEATS if card.exact else 0
        bound = FLOAT32_ROUNDINGS_MAX if card.dtype is torch.float32 else ROUNDINGS_MAX
        for rows, hidden, vocabulary in ((1, 64, 320), (40, 128, 5003), (5, 64, 12288)):
            case = f"cross-entropy over {vocabulary} tokens in {card.dtype}"
            found = find_difference(
                case,
                partial(_of_logits, card, rows, vocabulary, ops),
                partial(_of_logits, card, rows, vocabulary, PLAIN),
                bound=FLOAT32_ROUNDINGS_MAX,
                repeats=repeats,
            )
            for chunks in (1, 3):
                small = _Problem(card=card, rows=rows, hidden=hidden, vocabulary=vocabulary)
                found = found or find_difference(
                    case, partial(small.fused, ops, chunks), small.plain,
                    bound=bound, repeats=repeats,
                )  # fmt: skip
            if found is not None:
                return found
        return None

    def prepare(self, model: Any) -> int:
        """Return 1 for the head, 0 if it is none that this computes."""
        return int(head_problem(model) is None)

    def enabled(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:  # noqa: ARG002 - the seam
        """Change nothing: the loss is asked for `head_loss` by its caller."""
        return nullcontext()


def head_problem(model: Any) -> str | None:
    """Return in words why the head of `model` cannot be computed as one plain, frozen product."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        owner = " of PEFT" if type(head).__module__.startswith("peft.tuners") else ""
        return f"the head is a {type(head).__name__}{owner}, not a plain linear layer"
    if any(parameter.requires_grad for parameter in head.parameters()):
        return "the head is trained"
    if not head.weight.dtype.is_floating_point:
        return f"the head is stored in {head.weight.dtype}"
    state = vars(head)
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        return "something else changes what the head computes"
    return None


def _of_logits(
    card: Card, rows: int, vocabulary: int, ops: CrossEntropyOps
) -> dict[str, torch.Tensor]:
    """Return losses and gradients of logits, some of them large."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 6.0 * torch.randn(rows, vocabulary, generator=generator)
    logits[0, 5] = 90.0
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(card.device)
    logits = logits.to(card.device, card.dtype)
    losses = ops.losses(logits, targets, scale=1.0, gradient=True)
    return {"the loss": losses, "the gradient of logits": logits}


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Noise through a small head, in both ways."""

    card: Card
    rows: int
    hidden: int
    vocabulary: int

    def fused(self, ops: CrossEntropyOps, chunks: int) -> dict[str, torch.Tensor]:
        states, head, targets = self._make()
        logits_bytes = self.rows * self.vocabulary * head.weight.element_size()
        way = Way(ops=ops, dtype=self.card.dtype, chunk_bytes=-(-logits_bytes // chunks))
        return self._outcome(states, linear_cross_entropy(states, head, targets, way))

    def plain(self) -> dict[str, torch.Tensor]:
        states, head, targets = self._make()
        logits = head(states).float()
        return self._outcome(states, cross_entropy(logits, targets, reduction="sum"))

    def _make(self) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.hidden)
        states = torch.randn(self.rows, self.hidden, generator=generator)
        targets = torch.randint(self.vocabulary, (self.rows,), generator=generator)
        head = torch.nn.Linear(self.hidden, self.vocabulary).requires_grad_(requires_grad=False)
        for parameter in head.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        head.to(self.card.device, self.card.dtype)
        states = states.to(self.card.device, self.card.dtype).requires_grad_()
        return states, head, targets.to(self.card.device)

    def _outcome(self, states: torch.Tensor, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        (loss * 3.0 / self.rows).backward()  # type: ignore[no-untyped-call]
        assert states.grad is not None
        rounded = loss.detach().to(self.card.dtype)  # the head's products may be cut differently
        return {"the summed loss": rounded, "the gradient of hidden states": states.grad}
