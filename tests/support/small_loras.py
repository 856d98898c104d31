"""Puts PEFT's own LoRA on a model that was built by hand."""

from __future__ import annotations

import warnings
from typing import Any


def with_lora(base: Any, **settings: Any) -> Any:
    """Return `base` with a LoRA whose B is random, too, so that every gradient is there."""
    import peft

    with warnings.catch_warnings():  # the names of transformers 5, which 6 will drop
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


def recompute_activations(model: Any, **options: Any) -> None:
    """Turn on gradient checkpointing as a training does, without reentering autograd."""
    with warnings.catch_warnings():  # likewise
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False} | options)
