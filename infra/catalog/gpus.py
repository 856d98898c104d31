"""The GPU models that qft trusts, and what people call them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from infra.errors import BadRequest


class Driver(StrEnum):
    """The kind of NVIDIA driver that a size needs; the wrong kind fails with opaque errors."""

    DATACENTER = "datacenter"
    GRID = "grid"
    """The cloud's own vGPU driver, for sizes that rent out slices of a card."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One model of GPU."""

    name: str
    memory_gb: float
    """Of one whole card."""
    compute_capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ResolvedGpu:
    """The GPU that a name stands for at one vendor."""

    gpu: Gpu
    note: str = ""
    """A message for the user where it is not literally what was named."""


@dataclass(frozen=True, kw_only=True)
class Substitute:
    """The GPU that one vendor rents out in place of another, which it does not have."""

    gpu: str
    note: str
    """The message that says so."""


class UnknownGpu(BadRequest, ValueError):  # noqa: N818  (the seam's vocabulary)
    """No GPU of that name is in the catalog; the hint lists those that are.

    Also a `ValueError`, so that a config that names it is refused where it is read.
    """

    def __init__(self, name: str, *, candidates: list[str], names: list[str]) -> None:
        guess = " or ".join(f"`{one}`" for one in candidates)
        suggestion = f": did you mean {guess}?" if guess else ""
        super().__init__(
            f"no GPU called `{name}` is in the catalog{suggestion}",
            hint=f"known: {', '.join(names)}",
        )
        self.candidates = candidates


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4", memory_gb=16, compute_capability=(7, 5)),
        Gpu(name="A10", memory_gb=24, compute_capability=(8, 6)),
        Gpu(name="A10G", memory_gb=24, compute_capability=(8, 6)),
        Gpu(name="L4", memory_gb=24, compute_capability=(8, 9)),
        Gpu(name="A100", memory_gb=80, compute_capability=(8, 0)),
        Gpu(name="H100", memory_gb=94, compute_capability=(9, 0)),
    )
}
_OTHER_NAMES = {
    "TESLAT4": "T4",
    "A100-80GB": "A100",
    "A10080GB": "A100",
    "H100NVL": "H100",
}


def resolve_gpu(name: str, substitutes: Mapping[str, Substitute] | None = None) -> ResolvedGpu:
    """Find a GPU by any spelling of its name; raises `UnknownGpu` with candidates.

    `substitutes` are those of one vendor, by the name of the GPU that it does not have.
    """
    key = name.strip().upper().removeprefix("NVIDIA").replace("_", "-").replace(" ", "").strip("-")
    found = GPUS.get(_OTHER_NAMES.get(key, key))
    if found is None:
        candidates = difflib.get_close_matches(key, GPUS, n=3, cutoff=0.6)
        raise UnknownGpu(name, candidates=candidates, names=list(GPUS))
    substitute = (substitutes or {}).get(found.name)
    if substitute is None:
        return ResolvedGpu(gpu=found)
    return ResolvedGpu(gpu=GPUS[substitute.gpu], note=substitute.note)


def several_cards(name: str, count: float) -> str:
    """Return several cards for people, as `4 × T4`, or `4 cards` without a name; empty for one."""
    if count <= 1:
        return ""
    return f"{count:g} × {name}" if name else f"{count:g} cards"


def with_article(name: str) -> str:
    """Return a card's name in a sentence: `an A10G`, `an L4`, `a T4`."""
    return f"{'an' if name[:1].upper() in set('AEFHILMNORSX') else 'a'} {name}"
