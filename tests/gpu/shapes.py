"""The models that are trained: published shapes with random weights, and the rows to learn from.

Only the standard library is needed here. Shapes are those of the models' own `config.json`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]


def llama(  # noqa: PLR0917 - one line of a table
    hidden: int, wide: int, layers: int, heads: int, groups: int, words: int, *, tied: bool
) -> Mapping[str, Any]:  # fmt: skip
    """Return the config.json of a LLaMA of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "vocab_size": words,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }


MODELS: Mapping[str, Mapping[str, Any]] = {
    "1b": llama(2048, 8192, 16, 32, 8, 128256, tied=True),  # Llama-3.2-1B
    "3b": llama(3072, 8192, 28, 24, 8, 128256, tied=True),  # Llama-3.2-3B
    "8b": llama(4096, 14336, 32, 32, 8, 128256, tied=False),  # Llama-3.1-8B
    "tiny": llama(64, 128, 2, 4, 2, 320, tied=True),
}
PUBLISHED = {"1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248}
"""Parameters as the publisher's model pages count them."""
ROWS = 128
LONGEST = 512  # tokens of a row: one for each letter, and one for its end


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Yield the name and the shape of every tensor that the files of such a model hold."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (wide, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, wide)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def elements(shape: Shape) -> int:
    """Return how many numbers a tensor of that shape has."""
    count = 1
    for size in shape:
        count *= size
    return count


def file_bytes(model: str) -> int:
    """Return about how many bytes the files of that model take, two for each parameter."""
    return 2 * sum(elements(shape) for _, shape in tensors(MODELS[model])) + (1 << 20)


def write_rows(path: Path, *, longest: int, shortest: int) -> Path:
    """Write rows of `shortest` to `longest` letters (the end token counts as one); always the same.

    The lengths differ, so that batches are padded and attention has a mask.
    """
    chance = random.Random(0)  # noqa: S311 - no secret, and the same everywhere
    lines = []
    for row in range(ROWS):
        letters = longest - 1 - (row * 37) % (longest - shortest + 1)
        text = "".join(chance.choice("abcdefghijklmnop ") for _ in range(letters))
        cut = letters * 3 // 4
        lines.append(json.dumps({"text": text[:cut], "answer": text[cut:]}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
