"""Random models of several families, and random adapters on them, for what is made of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import tiny

PROMPTS = [[5, 9, 30], [0, 44, 81, 7, 7, 12], [99], [3, 4, 5, 6, 7, 8, 9, 10]]


def load(directory: Path, **more: Any) -> Any:
    """Load a model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32, **more)


def make_adapter(base: Path, directory: Path, **settings: Any) -> Any:
    """Write an adapter whose every number is random, and return base + adapter."""
    import peft

    wanted = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    model = peft.get_peft_model(load(base), peft.LoraConfig(task_type="CAUSAL_LM", **wanted))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(directory))
    return model.eval()


def gpt2(directory: Path) -> Any:
    """Write a random GPT-2, whose layers are transposed, and return it."""
    import transformers

    tiny.make_tokenizer().save_pretrained(str(directory))
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3, "vocab_size": 320}
    torch.manual_seed(0)
    sizes = transformers.GPT2Config(**ends, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = transformers.GPT2LMHeadModel(sizes)
    model.save_pretrained(str(directory))
    return model


def make_falcon(directory: Path) -> Path:
    """Write a random Falcon of 7B's kind: parallel branches, one key and value head, no biases."""
    from transformers import FalconConfig, FalconForCausalLM

    tiny.make_tokenizer().save_pretrained(str(directory))
    torch.manual_seed(0)
    FalconForCausalLM(
        FalconConfig(
            vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            multi_query=True, parallel_attn=True, bias=False, alibi=False,
            bos_token_id=0, eos_token_id=1, max_position_embeddings=256,
        )
    ).save_pretrained(str(directory))  # fmt: skip
    return directory


def t5(directory: Path) -> None:
    """Write a random T5, of which `wo` is never quantised."""
    tiny.make_tokenizer().save_pretrained(str(directory))
    make_t5().save_pretrained(str(directory))


def make_t5() -> Any:
    """Return a random T5."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = T5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=3, pad_token_id=3, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(sizes)
