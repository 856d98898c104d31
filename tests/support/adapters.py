"""Adapters of every method on a tiny base, and what PEFT makes of the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch

from support import tiny
from support.rig import Rig
from trainer import model as models
from trainer.config import load_config
from trainer.data.examples import collate


def plain_peft(made: Rig, adapter: Path) -> Any:
    """Load an adapter as anybody would who has never heard of us."""
    with warnings.catch_warnings():  # the names of transformers 5, which 6 will drop
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        return peft.PeftModel.from_pretrained(fresh_base(made), str(adapter)).eval()


def fresh_base(made: Rig) -> Any:
    """Load the base of a run once more, stored as it was in training."""
    config = load_config(made.run_dir / "config.json")
    cpu = torch.device("cpu")
    return models.load_base(
        models.find_source(config.model, made.run_dir),
        config.method,
        precision=models.device_precision(config.train, device=cpu, seq2seq=False),
        device=cpu,
    )


def logits(model: Any, made: Rig) -> torch.Tensor:
    """Return what the model says about the first rows, without dropout."""
    inputs = collate(made.context.examples[:4], 3)
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def make(kind: str, directory: Path) -> Path:
    """Write a random model of this architecture with the byte tokenizer of the tiny one."""
    import transformers

    tiny.make_tokenizer().save_pretrained(str(directory))
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3, "vocab_size": 320}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config: Any
    if kind == "phi":
        config = transformers.PhiConfig(**sizes, **ends, intermediate_size=64)
    elif kind == "falcon":
        config = transformers.FalconConfig(**sizes, **ends, multi_query=True)
    elif kind == "llama":
        config = transformers.LlamaConfig(**sizes, **ends, intermediate_size=64)
    else:
        config = transformers.T5Config(
            **ends, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            decoder_start_token_id=3, tie_word_embeddings=kind == "t5",
            feed_forward_proj="relu" if kind == "t5" else "gated-gelu",
        )  # fmt: skip
    torch.manual_seed(0)
    family = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    family.from_config(config).save_pretrained(str(directory))
    return directory
