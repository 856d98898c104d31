"""Chooses the class of transformers that a base is loaded by."""

from __future__ import annotations

from typing import Any


def choose_family(model_config: Any) -> Any:
    """Return the class of transformers that loads a base: the one of a plain program.

    A multimodal base for which there is no model of the text alone is loaded whole.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as WHOLE,
    )

    if getattr(model_config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    kind = type(model_config)
    only_whole = kind in WHOLE and kind not in CAUSAL
    remote = "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {})
    if only_whole and not remote:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM
