"""States how much of a base is quantised, and refuses one of which too little is.

What is not quantised keeps its 16 bits, in memory and in what it costs. transformers quantises
`torch.nn.Linear` only and says nothing of the rest. No library is needed here: a plan may ask, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED = 0.9
"""Of the weights of the layers' matrices, unless `method.partly_quantised` is set."""


@dataclass(frozen=True, kw_only=True)
class QuantisedShare:
    """Numbers of weights of a base: all of it, its layers' matrices, and what of both is quantised.

    The layers' matrices are those of attention, MLP and experts, in the part that reads text: no
    embeddings, head, norms, biases or convolutions, and nothing of what looks or listens.
    """

    storage: str
    weights: int
    quantised: int
    matrices: int
    quantised_matrices: int

    @property
    def of_base(self) -> float:
        """Share of all weights that is quantised, 0 to 1."""
        return self.quantised / self.weights if self.weights else 0.0

    @property
    def of_matrices(self) -> float:
        """Share of the weights of the layers' matrices that is quantised, 0 to 1."""
        return self.quantised_matrices / self.matrices if self.matrices else 0.0

    def problem(self, *, partly_quantised: bool) -> str | None:
        """Return why a base like this is not trained, None if it is.

        `partly_quantised` is the key of that name in the table `method`.
        """
        if self.storage == "none" or partly_quantised or self.of_matrices >= REQUIRED:
            return None
        left = self.matrices - self.quantised_matrices
        advice = (
            "bitsandbytes has experts in 4 bits only: use `quant: nf4`"
            if self.storage == "int8"
            else "use another base"
        )
        return (
            f"method.quant: only {_percent(self.of_matrices)} of the weights in the layers' "
            f"matrices would be in {self.storage}; {left:,} of {self.matrices:,} would stay in "
            f"16 bits or more. {advice[0].upper()}{advice[1:]}, or accept that memory with "
            "`method: {partly_quantised: true}`"
        )

    def to_text(self) -> str:
        """Say it in one line."""
        if self.storage == "none":
            return "the base is not quantised: 0 % of its weights"
        return (
            f"quantised to {self.storage}: {_percent(self.of_base)} of the base, "
            f"{_percent(self.of_matrices)} of the weights in its layers' matrices "
            "(attention, MLP, experts)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "storage": self.storage,
            "weights": self.weights,
            "quantised": self.quantised,
            "matrices": self.matrices,
            "quantised_matrices": self.quantised_matrices,
            "of_base": round(self.of_base, 6),
            "of_matrices": round(self.of_matrices, 6),
        }


def _percent(share: float) -> str:
    """Write a share such that only the whole is 100 %."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"
