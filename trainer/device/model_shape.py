"""The sizes of a model: the matrices of its layers, what is beside them, embeddings and head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

QUANTISABLE_MAX = (1 << 31) - 1
"""Elements of one tensor: bitsandbytes 0.50 counts them in 32 bits."""


class UnknownShapeError(Exception):
    """The config describes no architecture whose sizes are known here; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a block; `columns` in, `rows` out."""

    name: str
    columns: int
    rows: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        return self.columns * self.rows


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The matrices of one kind of all experts of a block, which lie in one tensor of 3 dimensions.

    Of `count` matrices, `chosen` compute for one token.
    """

    name: str
    columns: int
    rows: int
    count: int
    chosen: int

    @property
    def weights(self) -> int:
        """Number of weights of all experts, without biases."""
        return self.count * self.columns * self.rows

    @property
    def quantisable(self) -> bool:
        """Whether bitsandbytes takes the tensor."""
        return self.weights <= QUANTISABLE_MAX

    @property
    def active_weights(self) -> int:
        """Number of weights that compute for one token."""
        return self.chosen * self.columns * self.rows


@dataclass(frozen=True, kw_only=True)
class Block:
    """One kind of layer, `count` of them; widths are per token."""

    count: int
    linears: tuple[Linear, ...]
    norms: int
    """Norms whose input is kept in float32 for the backward pass."""
    queries: int
    keys: int
    feed_forward: int
    gated: bool
    others: int
    """Parameters of one layer that are in no matrix above: norms, routers, biases of experts."""
    experts: tuple[Experts, ...] = ()
    never_quantised: tuple[str, ...] = ()
    """Layers that transformers never quantises, and keeps in float32 in a float16 model."""
    unadapted: tuple[str, ...] = ()
    """Layers that PEFT cannot adapt beside experts, since it takes their names for those."""
    heads: int = 0
    """Heads of attention, 0 if that is not known: each has scores of its own."""
    idle: bool = False
    """It lies in memory, but no text passes it, nor is it adapted: the tower that sees."""

    @property
    def matrices(self) -> int:
        """Weights of the matrices of one layer."""
        linears, experts = self.linears, self.experts
        return sum(one.weights for one in linears) + sum(one.weights for one in experts)

    @property
    def biases(self) -> int:
        """Biases of the linear layers of one layer."""
        return sum(one.rows for one in self.linears if one.bias)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A whole model: its blocks, its embeddings and its head."""

    kind: str
    hidden: int
    vocabulary: int
    tied: bool
    blocks: tuple[Block, ...]
    encoder_decoder: bool = False
    other_parameters: int = 0
    """Parameters outside of the blocks: the last norm, learnt positions and the like."""

    @property
    def text_blocks(self) -> tuple[Block, ...]:
        """The blocks that a text passes through, which are those that are adapted."""
        return tuple(block for block in self.blocks if not block.idle)

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers of all blocks, without fused experts."""
        return sum(block.count * sum(one.weights for one in block.linears) for block in self.blocks)

    @property
    def expert_parameters(self) -> int:
        """Weights of all fused experts."""
        return sum(block.count * sum(one.weights for one in block.experts) for block in self.blocks)

    @property
    def active_parameters(self) -> int:
        """Weights of the matrices that compute for one token: of the experts, those chosen."""
        return sum(
            block.count
            * (
                sum(one.weights for one in block.linears)
                + sum(one.active_weights for one in block.experts)
            )
            for block in self.text_blocks
        )

    @property
    def active_in_all(self) -> int:
        """All parameters but those of experts that a token does not choose, and of idle blocks."""
        matrices = self.linear_parameters + self.expert_parameters
        return self.parameters - matrices + self.active_parameters

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embeddings, and of the head if it is not the same matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def small_parameters(self) -> int:
        """Everything that lies in no matrix of a block: norms, biases, routers, positions."""
        per_block = (block.count * (block.others + block.biases) for block in self.blocks)
        return sum(per_block) + self.other_parameters

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return (
            self.linear_parameters
            + self.expert_parameters
            + self.embedding_parameters
            + self.small_parameters
        )

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, from which `from_plain` makes the same shape."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Shape:
        """Return the shape that `to_plain` wrote; raises TypeError or KeyError if it is none."""

        def block(one: dict[str, Any]) -> Block:
            made = {
                "linears": tuple(Linear(**each) for each in one["linears"]),
                "experts": tuple(Experts(**each) for each in one["experts"]),
                "never_quantised": tuple(one["never_quantised"]),
                "unadapted": tuple(one["unadapted"]),
            }
            return Block(**{**one, **made})

        return cls(**{**plain, "blocks": tuple(block(one) for one in plain["blocks"])})
