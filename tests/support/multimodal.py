"""Random models that also see, of several families, with a text model of two small layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import tiny

TEXT: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "patch_size": 14, "image_size": 28,
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
}  # fmt: skip
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
WHOLE = ("gemma3", "gemma4", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava")
"""Loaded with their towers: there is no class of the text alone."""
TEXT_ALONE = ("llama4", "qwen3_5", "mllama")
"""Loaded as their text model, which is what plain transformers gives."""


def config_of(family: str) -> Any:
    """Return the sizes of a small multimodal model of this family."""
    import transformers as tf

    text: dict[str, Any]
    tower: dict[str, Any]
    more: dict[str, Any]
    if family == "gemma3":  # a picture is four places
        return tf.Gemma3Config(
            text_config={**TEXT, "sliding_window": 64}, vision_config=TOWER,
            mm_tokens_per_image=4, image_token_index=319, boi_token_index=318, eoi_token_index=317,
        )  # fmt: skip
    if family == "gemma4":
        text = {"sliding_window": 64, "vocab_size_per_layer_input": 320, "global_head_dim": 8}
        tower = {"head_dim": 8, "num_key_value_heads": 2, "position_embedding_size": 16}
        return tf.Gemma4Config(
            text_config={**TEXT, **text, "hidden_size_per_layer_input": 8},
            vision_config={**TOWER, **tower, "global_head_dim": 8}, audio_config=None,
        )  # fmt: skip
    if family == "llama4":
        text = {"intermediate_size_mlp": 64, "num_local_experts": 4, "num_experts_per_tok": 1}
        tower = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
        return tf.Llama4Config(
            text_config={**TEXT, **text, "attention_chunk_size": 64},
            vision_config={**TOWER, **tower},
        )
    if family == "qwen2_5_vl":
        return tf.Qwen2_5_VLConfig(
            text_config={**TEXT, "rope_parameters": ROPE},
            vision_config={**QWEN_TOWER, "fullatt_block_indexes": [1]},
        )
    if family == "qwen3_vl":
        places = {"deepstack_visual_indexes": [1], "num_position_embeddings": 16}
        return tf.Qwen3VLConfig(
            text_config={**TEXT, "rope_parameters": ROPE}, vision_config={**QWEN_TOWER, **places}
        )
    if family == "qwen3_5":
        text = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
        more = {"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        return tf.Qwen3_5Config(
            text_config={**TEXT, **text, **more},
            vision_config={**QWEN_TOWER, "num_position_embeddings": 16},
        )
    if family == "mllama":
        plain = {"rope_type": "default", "rope_theta": 10_000.0}
        tower = {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32}
        sizes = {key: value for key, value in TOWER.items() if key != "num_attention_heads"}
        more = {"intermediate_layers_indices": [0], "max_num_tiles": 1}
        return tf.MllamaConfig(
            text_config={**TEXT, "cross_attention_layers": [1], "rope_parameters": plain},
            vision_config={**sizes, **tower, **more, "supported_aspect_ratios": [[1, 1]]},
        )
    if family == "mistral3":
        return tf.Mistral3Config(
            text_config={**TEXT, "model_type": "mistral"},
            vision_config={**TOWER, "model_type": "pixtral", "head_dim": 8},
        )
    return tf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**TOWER, "model_type": "clip_vision_model"},
    )


def make_multimodal(directory: Path, family: str) -> Path:
    """Write a random model that also sees, and a tokenizer, to `directory`, and return it."""
    import transformers

    tiny.make_tokenizer().save_pretrained(str(directory))
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config_of(family))
    model.save_pretrained(str(directory))
    return directory
