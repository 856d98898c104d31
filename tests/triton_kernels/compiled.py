"""Compiles every kernel to machine code for each generation of cards; none needs to be there."""
# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

CAPABILITIES = (75, 80, 86, 89, 90)  # T4; A100; A10; L4; H100
BF16_SINCE = 80
SHARED_BYTES_MAX = 64 << 10
"""Of a T4, the least of all."""
COLUMNS = (128, 4096, 16384)
"""Widths of rows: of heads, of an 8B model, of the largest."""
VOCABULARY = 128_256


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kernel as it is launched: the types of its arguments, its constants and its warps."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int


def check(write: Callable[[str], Any]) -> list[str]:
    """Return what does not compile or does not fit a T4; `write` gets a line for each card."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    problems = []
    for capability in CAPABILITIES:
        done = shared = 0
        kinds = ("fp32", "fp16", "bf16") if capability >= BF16_SINCE else ("fp32", "fp16")
        for variant in (one for kind in kinds for one in variants(kind)):
            constants = variant.constants
            signature = {**variant.types, **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants)
            target, options = GPUTarget("cuda", capability, 32), {"num_warps": variant.warps}
            compiled = triton.compile(source, target=target, options=options)
            name = f"{variant.kernel.__name__} for sm_{capability}"
            if f"sm_{capability}" not in compiled.asm["ptx"] or not compiled.asm["cubin"]:
                problems.append(f"{name}: no machine code came out")
            if compiled.metadata.shared > SHARED_BYTES_MAX:
                problems.append(f"{name}: it needs {compiled.metadata.shared} bytes at once")
            if "atom." in compiled.asm["ptx"] or "red.global" in compiled.asm["ptx"]:
                problems.append(f"{name}: it adds in any order")
            done += 1
            shared = max(shared, compiled.metadata.shared)
        write(
            f"sm_{capability}: {done} variants compiled by Triton {triton.__version__}; "
            f"at most {shared} bytes of shared memory\n"
        )
    return problems


def variants(kind: str) -> Iterator[Variant]:
    """Yield every kernel as it is launched for tensors of this type."""
    from trainer.kernels import (
        triton_cross_entropy,
        triton_dropout,
        triton_gated_mlp,
        triton_rms_norm,
    )
    from trainer.kernels.plain_dropout import BLOCK, threshold
    from trainer.kernels.plain_rms_norm import forms

    of = f"*{kind}"
    for columns in COLUMNS:
        block, warps = triton_rms_norm.launch_size(columns)
        for form in forms(1e-6):
            constants = {"rounded": form.rounded, "offset": form.offset, "block": block}
            types = {"x": of, "weight": of, "y": of, "scale": "*fp32", "columns": "i32"}
            forward = {**types, "eps": "fp32"}
            yield Variant(
                kernel=triton_rms_norm.forward_kernel,
                types=forward, constants=constants, warps=warps,
            )  # fmt: skip
            backward = {"dy": of, "x": of, "weight": of, "scale": "*fp32", "dx": of}
            yield Variant(
                kernel=triton_rms_norm.backward_kernel,
                types={**backward, "columns": "i32"}, constants=constants, warps=warps,
            )  # fmt: skip
    strides = ("gate_stride", "up_stride", "columns")
    more = ("dh_stride", *strides, "d_gate_stride", "d_up_stride")
    inputs, outputs = dict.fromkeys(("gate", "up"), of), dict.fromkeys(("d_gate", "d_up"), of)
    for gelu in (False, True):
        gates: dict[str, Any] = {
            "constants": {"gelu": gelu, "block": triton_gated_mlp.BLOCK},
            "warps": triton_gated_mlp.WARPS,
        }
        yield Variant(
            kernel=triton_gated_mlp.forward_kernel,
            types={**inputs, "h": of, **dict.fromkeys(strides, "i32")}, **gates,
        )  # fmt: skip
        yield Variant(
            kernel=triton_gated_mlp.backward_kernel,
            types={"dh": of, **inputs, **outputs, **dict.fromkeys(more, "i32")}, **gates,
        )  # fmt: skip
    losses = {"logits": of, "targets": "*i64", "losses": "*fp32", "stride": "i32", "scale": "fp32"}
    for gradient in (False, True):
        block = triton_cross_entropy.BLOCK
        yield Variant(
            kernel=triton_cross_entropy.losses_kernel,
            types=losses, warps=triton_cross_entropy.WARPS,
            constants={"columns": VOCABULARY, "gradient": gradient, "block": block},
        )  # fmt: skip
    yield Variant(
        kernel=triton_dropout.dropped_kernel,
        types={"x": of, "y": of, "seed": "i64", "count": "i32", "factor": "fp32"},
        constants={"limit": threshold(0.05), "block": BLOCK}, warps=triton_dropout.WARPS,
    )  # fmt: skip
