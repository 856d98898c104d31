"""The usable memory and the training speed of each GPU, by its name in the catalog of machines.

A test binds the names to the GPUs that can be rented (`infra/catalog/gpus.py`). Speeds are fitted
on published times of other loops: nobody has measured ours. `docs/hours.md` holds every point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer.config import PrecisionChoice

GIB = 2**30
LAUNCH_S = 11e-6
"""Between two kernels that Python starts, autograd included; fitted with the shares below."""
BYTES_SHARE = 0.8
"""Of the bandwidth on the data sheet, for what norms, activations and sums read and write."""
UNPACKED_BYTES = 7.0
"""Moved for each weight that is unpacked: 2.5 bytes, at about a third of the speed of the rest."""
PCIE_SHARE = 0.5
"""Of what the data sheet says of PCI Express: a machine may send from card to card by way of its
own memory, which is there and back. Assumed; nobody has measured it for us."""
FITTED_FACTOR = 1.5
"""Nine tenths of the published times of a fitted card lie within this factor of the estimate."""
FEW_FACTOR = 2.0
"""The same where one published time is all there is, or a card is scaled by its data sheet."""


@dataclass(frozen=True, kw_only=True)
class TrainingGpu:
    """A GPU as a training sees it; `flops` is what its tensor cores reach, not the data sheet."""

    name: str
    memory_bytes: float
    precision: PrecisionChoice
    flops: float
    float32_flops: float = 0.0
    """The same of products in float32; 0 if they are as fast."""
    bytes_per_s: float = float("inf")
    """Of its memory; infinite where that is part of `flops`, as on a CPU."""
    pcie_bytes_per_s: float = float("inf")
    """Between this card and the others of its machine, in one direction."""
    gather_s: float = 0.0
    """Seconds more for each pass without a backward pass, if a sharded base is gathered for it."""
    launch_s: float = 0.0
    """Seconds that the start of a kernel takes on the processor beside it."""
    factor: float = FEW_FACTOR
    """By which a time may be shorter or longer."""
    source: str = ""
    """Where the speed comes from; empty if nobody has published one."""
    kernels: tuple[str, ...] = ()
    """Names of the faster kernels that it is known to use; in a plan none is."""


@dataclass(frozen=True, kw_only=True)
class _Card:
    """What the data sheet says: dense 16-bit TFLOPS with float32 sums, float32 TFLOPS, GB/s."""

    name: str
    gib: float
    """What the driver leaves, as torch's messages name it."""
    tensor: float
    float32: float
    bandwidth: float
    share: float
    """Of `tensor` that published trainings reach."""
    source: str
    fitted: bool = False
    pcie: float = 32
    """GB/s of its PCI Express in one direction: generation 4 with 16 lanes."""
    precision: PrecisionChoice = PrecisionChoice.BF16


SCALED = "scaled by the data sheet from the {}, of which times are published"
_A10G = "fitted on 21 runs of litgpt on an A10G (README, 2024-09)"
_A100 = "fitted on 18 times in Qwen's README (2023-12) and 2 of LLaMA-Factory's wiki (2023-12)"
_CARDS = (
    _Card(
        name="T4", gib=14.75, tensor=65, float32=8.1, bandwidth=320, share=0.08,
        source="fitted on one run of transformers, 7B on Alpaca (unsloth's README, 2024-03)",
        precision=PrecisionChoice.FP16, pcie=16,
    ),
    _Card(
        name="V100", gib=15.77, tensor=112, float32=14, bandwidth=900, share=0.62,
        source=SCALED.format("A100"), precision=PrecisionChoice.FP16, pcie=16,
    ),
    _Card(
        name="A10", gib=22.0, tensor=125, float32=31.2, bandwidth=600, share=0.28,
        source=SCALED.format("A10G"),
    ),
    _Card(
        name="A10G", gib=22.0, tensor=70, float32=35, bandwidth=600, share=0.28, source=_A10G,
        fitted=True,
    ),
    _Card(
        name="L4", gib=22.0, tensor=121, float32=30.3, bandwidth=300, share=0.28,
        source=SCALED.format("A10G"),
    ),
    _Card(
        name="L40S", gib=44.4, tensor=362, float32=91.6, bandwidth=864, share=0.64,
        source="fitted on 4 runs of PEFT's method_comparison, Llama-3.2-3B (2026-07)", fitted=True,
    ),
    _Card(
        name="A100-40GB", gib=39.4, tensor=312, float32=19.5, bandwidth=1555, share=0.62,
        source=_A100, fitted=True,
    ),
    _Card(
        name="A100", gib=79.1, tensor=312, float32=19.5, bandwidth=1935, share=0.62, source=_A100,
        fitted=True,
    ),
    # The NVL with 94 GB, which Azure rents.
    _Card(
        name="H100", gib=93.0, tensor=835, float32=60, bandwidth=3938, share=0.62,
        source=SCALED.format("A100"), pcie=64,
    ),
)  # fmt: skip

GPUS: Mapping[str, TrainingGpu] = MappingProxyType(
    {
        one.name: TrainingGpu(
            name=one.name,
            memory_bytes=one.gib * GIB,
            precision=one.precision,
            flops=one.tensor * one.share * 1e12,
            float32_flops=one.float32 * one.share * 1e12,
            bytes_per_s=one.bandwidth * BYTES_SHARE * 1e9,
            pcie_bytes_per_s=one.pcie * PCIE_SHARE * 1e9,
            launch_s=LAUNCH_S,
            factor=FITTED_FACTOR if one.fitted else FEW_FACTOR,
            source=one.source,
        )
        for one in _CARDS
    }
)
