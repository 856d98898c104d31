"""Reads what was trained, and by which loop, from the free text of a table of published peaks.

Each source names a training loop; what a cell leaves open, that loop decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from trainer.config import PrecisionChoice
from trainer.device.shapes import Block, Linear, Shape
from trainer.estimate import loops
from trainer.estimate.loops import Loop
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import OptimizerKind, Quant

OPEN = frozenset({"", "-", "?", "n/a", "unknown", "default", "default/rank file"})
"""Cells that say nothing."""
NO = frozenset({"no", "false", "0", "off"})
NUMBER_MAX = 1 << 24
GPTQ_BYTES = 0.5 + (2 + 0.5) / 128
"""Of a weight in 4 bits: groups of 128 share a float16 scale and a 4-bit zero."""
ATTENTION_MATRICES = ("q_proj", "k_proj", "v_proj")


class PointError(Exception):
    """A row cannot be predicted; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published loop, and what it does where a row says nothing."""

    words: str
    """A part of the `source` cell, in lower case."""
    loop: Loop
    r: int = 16
    targets: tuple[str, ...] | None = None
    dropout: bool = False
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    checkpointing: bool = True
    paged_if_quantised: bool = False
    alpaca_tokens: int = 750
    """The longest of the rows that a run of a few hundred steps sees; of all rows: 1304."""


QV = ("q_proj", "v_proj")
SOURCES = (
    Source(
        words="2023-", loop=loops.LITGPT_2023, r=8, targets=QV, dropout=True,
        checkpointing=False, paged_if_quantised=True, alpaca_tokens=1304,
    ),
    Source(
        words="litgpt", loop=loops.LITGPT, r=8, targets=QV, dropout=True,
        checkpointing=False, paged_if_quantised=True, alpaca_tokens=1304,
    ),
    Source(words="qwenlm", loop=loops.QWEN, r=64, dropout=True),
    Source(
        words="unslothai/notebooks", loop=loops.UNSLOTH, optimizer=OptimizerKind.ADAMW8BIT
    ),
    Source(words="torchtune", loop=loops.TORCHTUNE, r=8, alpaca_tokens=1304),
    Source(
        words="axolotl", loop=loops.AXOLOTL, r=32, dropout=True,
        optimizer=OptimizerKind.ADAMW8BIT,
    ),
    Source(words="fsdp_qlora", loop=loops.FSDP_QLORA, r=64, dropout=True),
    Source(
        words="method_comparison", loop=loops.PEFT_COMPARISON, r=32, targets=QV,
        checkpointing=False,
    ),
    Source(words="docs.unsloth", loop=loops.HF, r=32, optimizer=OptimizerKind.ADAMW8BIT),
    Source(words="unsloth", loop=loops.HF_2023, optimizer=OptimizerKind.ADAMW8BIT),
    Source(words="4bit-transformers", loop=loops.HF_2023, r=8, targets=QV, dropout=True),
)  # fmt: skip
OTHERS = Source(words="", loop=loops.HF)
"""A source that is not in the table: transformers' Trainer with PEFT."""

LETTERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "q": ("q_proj",),
        "k": ("k_proj",),
        "v": ("v_proj",),
        "o": ("o_proj", "dense", "out_proj"),
        "mlp": (
            "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "w1", "w2", "fc_in", "fc_out",
            "dense_h_to_4h", "dense_4h_to_h", "c_fc", "wi", "wi_0", "wi_1", "wo",
        ),
        "c_proj": ("c_proj", "o_proj"),
        "query_key_value": ATTENTION_MATRICES,
        "qkv_proj": ATTENTION_MATRICES,
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
)  # fmt: skip
LENGTHS: Mapping[str, int] = MappingProxyType({"metamath": 650, "laion": 500})
"""The longest batch of data sets that are shorter than the cap of their runs, in tokens."""
CARD_GIB: Mapping[str, float] = MappingProxyType(
    {
        "T4": 14.75, "P100": 15.9, "V100": 15.77, "A10": 22.0, "L4": 22.0, "L40": 44.4,
        "3090": 23.7, "4090": 23.6, "A6000": 47.5, "A100-40": 39.4, "A100": 79.1, "H100": 79.1,
    }
)  # fmt: skip
"""What the driver leaves to a process."""


def source_of(cells: Mapping[str, str]) -> Source:
    """Return the published loop that a row's source names."""
    text = cells.get("source", "").lower()
    return next((one for one in SOURCES if one.words in text), OTHERS)


def card_bytes(text: str) -> float | None:
    """Return the memory of a card that a cell names, None if it names none that is known."""
    plain = text.upper().replace(" ", "")
    for name in sorted(CARD_GIB, key=len, reverse=True):
        if name in plain:
            return CARD_GIB[name] * 2**30
    found = re.search(r"(\d+)G", plain)
    return float(found[1]) * 2**30 if found else None


def shards_of(text: str) -> int:
    """Return over how many cards a cell like `4x A10G` spreads what stays; 1 for one card."""
    found = re.match(r"\s*(\d{1,3})\s*[x*]", text.lower())
    return max(1, int(found[1])) if found else 1


def published_setup(cells: Mapping[str, str]) -> TrainingSetup:
    """Return the training of a row in the terms of the formula.

    Raises:
        PointError: a cell says something that is not understood.
    """
    source = source_of(cells)
    quant, stored, precision = _quantisation(cells.get("quant", "").lower())
    method = f"{cells.get('model', '')} {cells.get('method', '')}".lower()
    optimizer, paged = _optimizer(cells.get("optim", "").lower(), source, quant)
    checkpoint = cells.get("grad_ckpt", "").lower()
    rank = re.search(r"\br ?=? ?(\d+)\b", method)
    targets = cells.get("targets", "").lower()
    full = bool(re.search(r"\bfull\b", method))
    loop = replace(_loop_of(cells, source, quant=quant, full=full), paged_moments=paged)
    return TrainingSetup(
        tokens=_tokens(cells, source),
        micro_batch=number(cells.get("micro_bs", ""), 1) * (2 if _in_pairs(method) else 1),
        quant=quant,
        stored_bytes=stored,
        double_quant="dq" in cells.get("quant", "").lower(),
        r=number(cells.get("r", ""), int(rank[1]) if rank else source.r),
        targets=_targets(targets, source),
        head="head" in targets and "lm_head" not in targets,
        saved=2 if re.search(r"emb|wte|lm_head", f"{targets} {method}") else 0,
        dropout=source.dropout,
        optimizer=optimizer or source.optimizer,
        precision=precision,
        checkpointing=source.checkpointing if checkpoint in OPEN else checkpoint not in NO,
        dora="dora" in method,
        miss="miss" in method or "bone" in method,
        variant=_variant(method),
        full=full,
        loop=_adjusted(loop, method, checkpoint),
    )


def _quantisation(text: str) -> tuple[Quant, float | None, PrecisionChoice]:
    """Return how the base is stored, the bytes of a weight if that is no kind of ours, the type."""
    precision = PrecisionChoice.BF16
    if re.search(r"fp16|float16|\bhalf", text):
        precision = PrecisionChoice.FP16
    elif re.search(r"fp32|float32", text):
        precision = PrecisionChoice.FP32
    if re.search(r"gptq|awq", text):
        return Quant.NF4, GPTQ_BYTES, PrecisionChoice.FP16
    for words, quant in (
        ("nf4|4.?bit|int4|mxfp4", Quant.NF4),
        ("fp4", Quant.FP4),
        ("int8|8.?bit", Quant.INT8),
    ):
        if re.search(words, text):
            return quant, None, precision
    if text in OPEN or re.search(r"none|no\b|(bf|fp|float)\d\d", text):
        return Quant.NONE, None, precision
    raise PointError(f"the quantisation {text[:40]!r} is not understood")


def _optimizer(text: str, source: Source, quant: Quant) -> tuple[OptimizerKind | None, bool]:
    """Return the optimizer, None if the cell names none, and whether its moments are paged."""
    quantised = quant is not Quant.NONE
    if text in OPEN:
        return None, source.paged_if_quantised and quantised
    paged = "paged" in text and (quantised or "if quant" not in text)
    eight = re.search(r"8.?bit|bnb_8|adamw8", text)
    return OptimizerKind.ADAMW8BIT if eight else OptimizerKind.ADAMW, paged


def _loop_of(cells: Mapping[str, str], source: Source, *, quant: Quant, full: bool) -> Loop:
    """Return the variant of a source's loop that a row was measured with."""
    loop, model = source.loop, cells.get("model", "").lower()
    if loop is loops.QWEN and quant is not Quant.NONE:
        return loops.QWEN_GPTQ
    if loop is loops.UNSLOTH and re.search(r"gemma-?2\b(?!b)", model):
        return loops.UNSLOTH_SOFTCAP
    if loop is loops.TORCHTUNE and full:
        return loops.TORCHTUNE_FULL
    if loop is loops.TORCHTUNE and "compile" in cells.get("optim", "").lower():
        return loops.TORCHTUNE_COMPILED
    if loop is loops.PEFT_COMPARISON and full:
        return loops.PEFT_FULL
    return loop


def _adjusted(loop: Loop, method: str, checkpoint: str) -> Loop:
    """Return a loop with what the row says of attention and of checkpoints."""
    if re.search(r"sdpa|fa2|flash|xformers", method):
        loop = replace(loop, eager=False)
    elif "eager" in method:
        loop = replace(loop, eager=True)
    if loop.checkpoints_on_host and checkpoint not in OPEN and "unsloth" not in checkpoint:
        loop = replace(loop, checkpoints_on_host=False)
    return loop


def _targets(text: str, source: Source) -> tuple[str, ...] | None:
    """Return the names of the adapted layers, None for all linear ones."""
    words = [one for one in re.split(r"[\s,/;+]+", text) if one]
    if not words or text in OPEN or words[0] in OPEN:
        return source.targets
    if words[0].startswith("all") or "linear" in words:
        return None
    names = [name for one in words for name in LETTERS.get(one, (one,))]
    if "c_attn" in names:
        names += ATTENTION_MATRICES
    return tuple(names)


def _variant(method: str) -> Literal["lora", "vera", "loha"]:
    if re.search(r"\bvera\b", method):
        return "vera"
    return "loha" if re.search(r"\bloha\b", method) else "lora"


def _in_pairs(method: str) -> bool:
    """Tell whether a chosen and a rejected answer go through the model together."""
    return re.search(r"\b(d|or|k|cp|sim)po\b", method) is not None


def number(text: str, default: int) -> int:
    """Return the whole number above 0 in a cell, `default` if the cell says nothing.

    Raises:
        PointError: it is something else.
    """
    if text.lower() in OPEN:
        return default
    found = re.fullmatch(r"(\d{1,9})(?:\.0*)?", text.replace(",", ""))
    if found is None or not 0 < int(found[1]) <= NUMBER_MAX:
        raise PointError(f"{text[:40]!r} is no whole number from 1 to {NUMBER_MAX}")
    return int(found[1])


def _tokens(cells: Mapping[str, str], source: Source) -> int:
    """Return the length of the longest batch, in tokens.

    A cap is reached unless the rows are known to be shorter; what is exact, packed or the length of
    the longest row, is that.
    """
    seq, kind = cells.get("seq", "").lower(), cells.get("seq_kind", "").lower()
    words = " ".join((cells.get("model", ""), seq, kind)).lower()
    caps = [int(one) for one in re.findall(r"\d{2,7}", f"{seq.replace(',', '')} {kind}")]
    cap = caps[0] if caps else 2048
    if not 0 < cap <= NUMBER_MAX:
        raise PointError(f"{seq[:40]!r} is no length")
    packed = "packed" in words and "unpacked" not in words
    if packed or re.search(r"exact|longest|^max of", kind):
        return cap
    shorter = [length for word, length in LENGTHS.items() if word in words]
    if "alpaca" in words:
        shorter.append(source.alpaca_tokens)
    return min([cap, *shorter])


def published_shape(shape: Shape, cells: Mapping[str, str]) -> Shape:
    """Return a shape whose attention matrices are apart, or one if they have one adapter.

    Rows name queries and values also where a model has them in one matrix, as `q,v`; the first Qwen
    has all three in `c_attn`.
    """
    change = _fuse if "c_attn" in cells.get("targets", "").lower() else _split
    return replace(shape, blocks=tuple(change(block) for block in shape.blocks))


def _split(block: Block) -> Block:
    linears: list[Linear] = []
    rows = dict(zip(ATTENTION_MATRICES, (block.queries, block.keys, block.keys), strict=True))
    for one in block.linears:
        if one.name in {"query_key_value", "qkv_proj", "c_attn"}:
            linears += [replace(one, name=name, rows=size) for name, size in rows.items()]
        elif one.name == "gate_up_proj":
            halves = ("gate_proj", "up_proj")
            linears += [replace(one, name=name, rows=one.rows // 2) for name in halves]
        else:
            linears.append(one)
    return replace(block, linears=tuple(linears))


def _fuse(block: Block) -> Block:
    parts = [one for one in block.linears if one.name in ATTENTION_MATRICES]
    if len(parts) != len(ATTENTION_MATRICES):
        return block
    fused = replace(parts[0], name="c_attn", rows=sum(one.rows for one in parts))
    return replace(block, linears=(fused, *(one for one in block.linears if one not in parts)))
