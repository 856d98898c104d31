"""Examines the card before anything is trained: its arithmetic, its attention, and every kernel.

    python -m gpu.kernels LINES [DEVICE]

LINES is a JSON list of lines, written anew after each, so that a fault of the card, which ends the
process, loses one line only. Each kernel of the trainer is proved as the trainer itself does it
before a run (`Kernel.prove`), in both 16-bit types, and several times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from gpu.checks import Checked, UnsuitableError, attempt
from gpu.lines import Figure, Line, Result, figures_of
from gpu.shapes import MODELS
from gpu.watched import label

PROOFS = 4  # each repeats itself five times
SIDE = 8192  # of the matrices that are multiplied
TIMED, WARM_UP = 10, 3
LENGTHS = (512, 2048, 4096)
TOKENS, HEADS, GROUPS, WIDTH = 8192, 32, 8, 128  # of the attention that is timed: an 8B model's
KERNEL = "kernel "
"""What the name of a kernel's line begins with."""


def main(arguments: Sequence[str]) -> int:
    """Examine the card, and leave the lines."""
    path, device = Path(arguments[0]), (arguments[1:] or ["cuda"])[0]
    from trainer.job.job import prepare_environment

    prepare_environment()
    from trainer.device.determinism import make_deterministic

    make_deterministic()  # as a training does, which fills no fresh memory
    lines: list[Line] = []
    for what, check in [*machine_checks(device), *kernel_checks(device)]:
        began_s = time.perf_counter()
        line = attempt(what, check)
        lines.append(Line(**{**vars(line), "seconds": time.perf_counter() - began_s}))
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps([asdict(one) for one in lines]), encoding="utf-8")
        partial_path.replace(path)
    return 0


def machine_checks(device: str) -> list[tuple[str, Callable[[], Checked]]]:
    """Return what is looked at beside the kernels; nothing of it is a matter of a processor."""
    if device != "cuda":
        return []
    return [
        ("card: products and copies", products),
        ("card: NF4 as on the processor", nf4_values),
        ("card: attention kernels of torch", attention_kernels),
        ("card: attention in a fixed order", attention_cost),
    ]


def kernel_checks(device: str) -> list[tuple[str, Callable[[], Checked]]]:
    """Return a check for each kernel of the trainer, in each arithmetic of the device."""
    import torch

    from trainer.config import TrainTable
    from trainer.kernels.choose import candidates

    types = {"bf16": torch.bfloat16, "fp16": torch.float16} if device == "cuda" else {
        "fp32": torch.float32
    }  # fmt: skip
    return [
        (f"{KERNEL}{label(kernel)}: {word}", partial(proofs, kernel, device, dtype))
        for kernel in candidates(TrainTable())
        for word, dtype in types.items()
    ]


def proofs(kernel: Any, device: str, dtype: Any) -> Checked:
    """Prove a kernel for exact runs several times, and once for those that may be inexact.

    Raises:
        UnsuitableError: it fails where it says itself that it does not suit.
    """
    first_s = None
    for exact in (*[True] * PROOFS, False):
        began_s = time.perf_counter()
        card = card_at(device, dtype, exact=exact)
        problem = attempt_proof(kernel, card)
        first_s = time.perf_counter() - began_s if first_s is None else first_s
        if problem:
            unsuitable = kernel.unsuitable(adapted_model(), card)
            if unsuitable:
                raise UnsuitableError(unsuitable)
            return False, problem, {}
    figures = figures_of({"first_proof": (first_s, "s")})
    return True, "equal within its bound, the same bits each time", figures


def attempt_proof(kernel: Any, card: Any) -> str | None:
    """Return what a proof says or raises, None if all is well; a broken card ends the process."""
    import torch

    try:
        problem: str | None = kernel.prove(card)
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 - a kernel that cannot be run is a result
        return f"{type(error).__name__}: {error}"
    return problem


@cache
def adapted_model() -> Any:
    """Return a model of no size with LoRA that has a place for every kernel, to ask them.

    It is a LLaMA, and beside it an MLP of Gemma and a layer in 4 bits.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GemmaConfig, LlamaConfig, LlamaForCausalLM
    from transformers.models.gemma.modeling_gemma import GemmaMLP

    from trainer.kernels.linear_4bit import make_layer

    base = LlamaForCausalLM(LlamaConfig(**MODELS["tiny"]))
    lora = LoraConfig(r=4, lora_dropout=0.05, target_modules="all-linear")
    model = get_peft_model(base, lora)
    model.add_module("geglu", GemmaMLP(GemmaConfig(hidden_size=8, intermediate_size=16)))
    model.add_module("quantised", make_layer(card_at("cpu", torch.float32), "nf4", nested=True))
    return model


def card_at(device: str, dtype: Any, *, exact: bool = True) -> Any:
    """Return what decides about kernels: the device at hand with this arithmetic."""
    import torch

    from trainer.kernels.kernel_set import Card

    where = torch.device(device)
    capability = torch.cuda.get_device_capability(where) if device == "cuda" else None
    return Card(device=where, capability=capability, dtype=dtype, exact=exact)


def timed_ms(act: Callable[[], Any]) -> float:
    """Return the mean milliseconds of an act on the card, by its own events."""
    import torch

    for _ in range(WARM_UP):
        act()
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(TIMED):
        act()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / TIMED


def products() -> Checked:
    """Measure a large product of random numbers in bfloat16, and a copy."""
    import torch

    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = timed_ms(lambda: left @ right)
    target = torch.empty_like(left)
    copy_ms = timed_ms(lambda: target.copy_(left))
    rate = 2 * SIDE**3 / product_ms / 1e9
    moved = 2 * left.numel() * left.element_size() / copy_ms / 1e9
    major, minor = torch.cuda.get_device_capability()
    figures = figures_of({"bf16_products": (rate, "TFLOP/s"), "copy": (moved, "TB/s")})
    cudnn: Any = torch.backends.cudnn
    versions = f"torch {torch.__version__}, cuDNN {cudnn.version()}"
    message = f"sm_{major}{minor}, {rate:.0f} TFLOP/s, {moved:.2f} TB/s read and written"
    return True, f"{message}; {versions}", figures


def nf4_values() -> Checked:
    """Compare what the card unpacks of a quantised weight with what a processor does."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    drawn = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0)) * 0.02
    weight = drawn.to(torch.bfloat16)
    here, there = (
        quantize_4bit(one, quant_type="nf4", compress_statistics=True)
        for one in (weight, weight.cuda())
    )
    values = dequantize_4bit(*there).cpu()
    away = (dequantize_4bit(*here).float() - values.float()).abs().max().item()
    step = weight.abs().max().item() / 4  # the widest gap between two neighbours of NF4
    other = (here[0] != there[0].cpu()).float().mean().item()
    figures = figures_of({"other_bytes": (other, "share"), "farthest": (away, "")})
    message = f"{other:.2%} of the packed bytes differ, values by at most {away:.1e}"
    return away <= step, message, figures


def attention_kernels() -> Checked:
    """Say which attention kernels of torch take rows with a mask, and which without."""
    import torch

    found = []
    for masked in (False, True):
        query, keys = (
            torch.empty(2, heads, 512, WIDTH, device="cuda", dtype=torch.bfloat16,
                        requires_grad=True)
            for heads in (HEADS, HEADS if masked else GROUPS)
        )  # fmt: skip
        mask = torch.ones(2, 1, 512, 512, device="cuda", dtype=torch.bool) if masked else None
        wanted = torch.backends.cuda.SDPAParams(
            query, keys, keys, mask, 0.0, not masked, not masked
        )
        names = [
            name
            for name, can_use in (
                ("flash", torch.backends.cuda.can_use_flash_attention),
                ("memory-efficient", torch.backends.cuda.can_use_efficient_attention),
                ("cuDNN", torch.backends.cuda.can_use_cudnn_attention),
            )
            if can_use(wanted)
        ]
        kind = "with a mask" if masked else "without a mask, keys not repeated"
        found.append(f"{kind}: {', '.join(names) or 'none'}")
    return True, "; ".join(found), {}


def attention_cost() -> Checked:
    """Measure attention and its backward pass with the demand for a fixed order, and without."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    figures: dict[str, Figure] = {}
    parts = []
    for length in LENGTHS:
        rows = TOKENS // length
        query, keys, values = (
            torch.randn(rows, heads, length, WIDTH, device="cuda", dtype=torch.bfloat16,
                        requires_grad=True)
            for heads in (HEADS, GROUPS, GROUPS)
        )  # fmt: skip

        def both_ways(query: Any, keys: Any, values: Any) -> None:
            out = scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
            torch.autograd.grad(out, (query, keys, values), torch.ones_like(out))

        took = {}
        for exact in (True, False):
            torch.set_deterministic_debug_mode("error" if exact else "default")
            took[exact] = timed_ms(partial(both_ways, query, keys, values))
        torch.set_deterministic_debug_mode("warn")
        figures[f"exact_{length}"] = Figure(value=took[True], unit="ms")
        figures[f"inexact_{length}"] = Figure(value=took[False], unit="ms")
        parts.append(f"{length} tokens {took[True] / took[False]:.2f} times as long")
    return True, f"a fixed order takes, of {TOKENS} tokens a layer: {', '.join(parts)}", figures


def proved(lines: Sequence[Line]) -> list[str]:
    """Return the labels of the kernels that were right in every arithmetic that they suit."""
    names: dict[str, bool] = {}
    for line in lines:
        if line.what.startswith(KERNEL):
            name = line.what.removeprefix(KERNEL).rpartition(": ")[0]
            names[name] = names.get(name, True) and line.result is Result.DONE
    return [name for name, right in names.items() if right]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
