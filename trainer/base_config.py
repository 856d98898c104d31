"""Judges a base by its `config.json` alone: can it be trained at all, and stored as it is wanted?

No library is needed, so that it is known before anything is rented. Sources: the quantisers of
transformers 5.23 (`quantizers/auto.py`) and its encoders; the configs that publishers put on hubs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.method_table import MethodTable, Quant

ENCODERS = frozenset(
    {
        "albert", "bert", "big_bird", "camembert", "canine", "convbert", "data2vec-text",
        "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert",
        "flaubert", "funnel", "ibert", "layoutlm", "layoutlmv3", "longformer", "luke", "lxmert",
        "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "nezha", "nomic_bert",
        "nystromformer", "perceiver", "qdqbert", "rembert", "roberta", "roberta-prelayernorm",
        "roc_bert", "roformer", "splinter", "squeezebert", "tapas", "xlm", "xlm-roberta",
        "xlm-roberta-xl", "xmod", "yoso",
    }
)  # fmt: skip
"""Architectures that read a text from both sides, unless their config has `is_decoder`."""
DIFFUSION = frozenset({"diffusion_gemma", "dream", "llada", "llada_moe", "sdar", "sdar_moe"})
"""Architectures that fill in masked tokens in any order."""
DIFFUSION_CLASSES = ("Dream", "LLaDA", "SDAR")
"""How the classes begin of some that give no name, or another's, in `model_type`."""
_SUFFIX = re.compile(
    r"[-_.](?:unsloth[-_.])?(?:bnb[-_.]?[48]bit|fp8(?:[-_.]dynamic)?|nvfp4|mxfp4|awq(?:[-_.]int4)?"
    r"|gptq(?:[-_.]int[48])?|hqq|[48]bit|int[48]|w4a16|w8a8|w8a16)$",
    re.IGNORECASE,
)


def base_problems(config: Mapping[str, Any], method: MethodTable, *, name: str) -> list[str]:
    """Return why a base with this config is not trained by this method; empty if it may be.

    `name` is the base's hub id or directory: a quantised copy is often called after its original.
    """
    problems = [_causal_problem(config), _quantised_problem(config, method, name)]
    return [problem for problem in problems if problem is not None]


def _causal_problem(config: Mapping[str, Any]) -> str | None:
    kind = str(config.get("model_type", ""))
    if kind in ENCODERS and not config.get("is_decoder"):
        return (
            f"model.id: a `{kind}` is an encoder, whose tokens see those that follow: it cannot "
            "learn to write. Take a causal model, or an encoder-decoder such as T5"
        )
    listed = config.get("architectures")
    classes = [str(one) for one in listed] if isinstance(listed, list) else []
    if kind.lower() in DIFFUSION or any(one.startswith(DIFFUSION_CLASSES) for one in classes):
        return (
            f"model.id: a `{kind}` writes by diffusion, in no order of its tokens: it cannot be "
            "trained as a causal model"
        )
    return None


def stored_quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how the weights of a base are quantised in its files; None if they are not."""
    texts = config.get("text_config"), config.get("llm_config")
    for place in (config, *(text for text in texts if isinstance(text, Mapping))):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if isinstance(found, Mapping) and found:
                return found
    return None


def stored_kind(stored: Mapping[str, Any]) -> Quant | None:
    """Return the storage that a stored quantisation is by our name; None if it is none of ours."""
    method = str(stored.get("quant_method") or "bitsandbytes").lower()
    if method not in {"bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"}:
        return None
    if stored.get("load_in_8bit") or stored.get("_load_in_8bit"):
        return Quant.INT8
    if stored.get("load_in_4bit") or stored.get("_load_in_4bit"):
        kind = stored.get("bnb_4bit_quant_type", "fp4")
        return Quant(kind) if kind in {Quant.NF4, Quant.FP4} else None
    return None


def _quantised_problem(config: Mapping[str, Any], method: MethodTable, name: str) -> str | None:
    stored = stored_quantisation(config)
    if stored is None:
        return None
    kind = stored_kind(stored)
    original = _SUFFIX.sub("", name)
    instead = f"`{original}`" if original != name else "the base in 16 bits that it was made from"
    if kind is None:
        words = str(stored.get("quant_method") or "a way that is not named")[:40]
        return (
            f"model.id: the weights of this base are quantised already ({words}), and adapters are "
            "trained here on unquantised weights or bitsandbytes' nf4, fp4 and int8. "
            f"Take {instead}"
        )
    if expert_count(config) > 1:
        return (
            f"model.id: the experts of this base are quantised already ({kind}) one by one, which "
            f"transformers 5 cannot load: it has them in one tensor. Take {instead}"
        )
    if kind is method.storage:
        return None
    fits = "kind: qlora, quant: " + kind
    return (
        f"method.quant: the weights of this base are quantised already, to {kind}, and `kind: "
        f"{method.kind}` with `quant: {method.quant}` wants {_wanted(method)}. "
        f"Use `{fits}`, or take {instead}"
    )


def _wanted(method: MethodTable) -> str:
    """Return the storage that a method asks for, in words."""
    return "unquantised ones" if method.storage is Quant.NONE else str(method.storage)


def expert_count(config: Mapping[str, Any]) -> int:
    """Return how many experts a layer has, by the names that configs have for that; 0 if none."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    found = [place.get(key) for place in places for key in keys]
    return max((one for one in found if isinstance(one, int)), default=0)
