"""Training steps of real bases, counted with fake tensors: what the formula of memory is held to.

`counted_steps.json` was made by `python tests/support/counted_steps.py`, which does the whole step
of every base below by `trainer.step_memory` (some minutes, no GPU, no weights) and writes the file
anew; `test_step_memory.py` counts some of them again. Sizes are those of the published configs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_suffix(".json")
T4, A10 = (7, 5), (8, 6)
QLORA = {"kind": "qlora", "r": 16}
PHI_15 = {
    "model_type": "phi", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip


def llama(  # noqa: PLR0917 - the columns of a table
    hidden: int, wide: int, layers: int, heads: int, groups: int, words: int, **more: Any
) -> dict[str, Any]:
    """The sizes of a model of the LLaMA kind in its config's words."""
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "vocab_size": words, "tie_word_embeddings": False, "max_position_embeddings": 8192,
    } | more  # fmt: skip


BASES: Mapping[str, dict[str, Any]] = {
    "phi-1_5": PHI_15,
    "phi-2": PHI_15 | {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32},
    "falcon-7b": {
        "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "vocab_size": 65024, "multi_query": True,
    },
    "open_llama_7b": llama(4096, 11008, 32, 32, 32, 32000),
    "flan-t5-xxl": {
        "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_decoder_layers": 24, "num_heads": 64, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "t5-3b": {
        "model_type": "t5", "d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24,
        "num_decoder_layers": 24, "num_heads": 32, "vocab_size": 32128,
    },
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256),
    "Qwen2.5-7B": llama(3584, 18944, 28, 28, 4, 152064, model_type="qwen2"),
    "Qwen3-8B": llama(4096, 12288, 36, 32, 8, 151936, model_type="qwen3", head_dim=128),
    "Mistral-7B": llama(4096, 14336, 32, 32, 8, 32768, model_type="mistral", sliding_window=None),
    "gemma-2-2b": llama(
        2304, 9216, 26, 8, 4, 256000, model_type="gemma2", head_dim=256, tie_word_embeddings=True
    ),
    "TinyLlama-1.1B": llama(2048, 5632, 22, 32, 4, 32000),
    "Phi-3-mini": llama(3072, 8192, 32, 32, 32, 32064, model_type="phi3", pad_token_id=32000),
    "SmolLM2-135M": llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
             "vocab_size": 50257, "n_positions": 1024},
    "opt-1.3b": {
        "model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "vocab_size": 50272, "max_position_embeddings": 2048,
        "do_layer_norm_before": True, "word_embed_proj_dim": 2048,
    },
    "Qwen3-30B-A3B": llama(
        2048, 6144, 48, 32, 4, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128,
        num_experts_per_tok=8, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
        moe_intermediate_size=768,
    ),
}  # fmt: skip


def request(
    base: str, capability: tuple[int, int] | None, tokens: int, *micro_batches: int,
    method: Mapping[str, Any] = QLORA, batch_size: int = 8, loss_tokens: int | None = None,
    **train: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the request of a step, as `python -m trainer step-memory` reads it."""
    return {
        "config": BASES[base],
        "method": dict(method),
        "train": {"batch_size": batch_size, "gradient_checkpointing": True, **train},
        "capability": capability,
        "tokens": tokens,
        "loss_tokens": loss_tokens,
        "micro_batches": list(micro_batches) or [1, 2],
    }


def dropped(r: int, dropout: float, **more: Any) -> dict[str, Any]:
    """Return a method of a recipe."""
    return {"kind": "qlora", "r": r, "dropout": dropout, **more}


REQUESTS: Mapping[str, dict[str, Any]] = {
    "phi2-sentiment": request("phi-2", T4, 1024, method=dropped(4, 0.1), batch_size=4),
    "phi2-sentiment, a word is learnt": request(
        "phi-2", T4, 1024, method=dropped(4, 0.1), batch_size=4, loss_tokens=4
    ),
    "phi2 r 64, no checkpointing": request(
        "phi-2", T4, 1024, method=dropped(64, 0.1), batch_size=4, gradient_checkpointing=False
    ),
    "phi15-toxic": request("phi-1_5", T4, 1024, method=dropped(8, 0.1)),
    "phi15-ds1000": request("phi-1_5", T4, 1536, method=dropped(8, 0.1)),
    "falcon7b-counselling": request("falcon-7b", A10, 1024, method=dropped(16, 0.05)),
    "openllama7b-chat": request(
        "open_llama_7b", A10, 2048, batch_size=4,
        method=dropped(8, 0.05, targets=["q_proj", "k_proj", "v_proj"]),
    ),
    "flan-t5-xxl": request(
        "flan-t5-xxl", A10, 512, 1, 2, 8, method=dropped(64, 0.1, partly_quantised=True)
    ),
    "t5-3b-footprint": request(
        "t5-3b", T4, 512, 1, method=dropped(8, 0.0, partly_quantised=True), batch_size=1
    ),
    "Llama-3.1-8B": request("Llama-3.1-8B", A10, 2048),
    "Llama-3.1-8B, T4": request("Llama-3.1-8B", T4, 2048),
    "Qwen2.5-7B": request("Qwen2.5-7B", A10, 2048),
    "Qwen3-8B": request("Qwen3-8B", A10, 2048),
    "Mistral-7B": request("Mistral-7B", A10, 2048),
    "gemma-2-2b": request("gemma-2-2b", A10, 1024),
    "TinyLlama-1.1B": request("TinyLlama-1.1B", A10, 2048),
    "TinyLlama-1.1B, int8": request(
        "TinyLlama-1.1B", A10, 2048, method={"kind": "qlora", "r": 16, "quant": "int8"}
    ),
    "TinyLlama-1.1B, 16 bits, no checkpointing": request(
        "TinyLlama-1.1B", A10, 1024, method={"kind": "lora", "r": 16}, gradient_checkpointing=False
    ),
    "TinyLlama-1.1B, DoRA": request("TinyLlama-1.1B", A10, 1024, method={"kind": "qdora", "r": 16}),
    "TinyLlama-1.1B, r 256": request(
        "TinyLlama-1.1B", A10, 256, method={"kind": "qlora", "r": 256}, batch_size=2
    ),
    "Phi-3-mini": request("Phi-3-mini", A10, 2048),
    "SmolLM2-135M": request("SmolLM2-135M", A10, 1024),
    "gpt2": request("gpt2", T4, 1024),
    "opt-1.3b": request("opt-1.3b", T4, 1024),
    "Qwen3-30B-A3B": request("Qwen3-30B-A3B", A10, 1024, 1),
}  # fmt: skip


def counted() -> dict[str, dict[str, Any]]:
    """Return what was counted of each request, by its name."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def count_all(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Count the steps of these names, or all."""
    from dataclasses import asdict

    from trainer.step_memory.command import count
    from trainer.step_memory.request import StepRequest

    for name in names or list(REQUESTS):
        yield name, asdict(count(StepRequest.model_validate(REQUESTS[name]), whole=True))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    table = counted() if FILE.exists() else {}
    for which, result in count_all(sys.argv[1:]):
        table[which] = result
        kept = {one: table[one] for one in REQUESTS if one in table}
        FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(which, result, flush=True)  # noqa: T201 - it is a command that talks
