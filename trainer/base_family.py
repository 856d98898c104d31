"""Chooses the class of transformers that a base is loaded by, and imports its code ahead."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trainer.method_table import MethodTable, Quant


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


def import_code(model_config: Mapping[str, Any], method: MethodTable) -> None:
    """Import what loading a base and training it will import, so that it can be done ahead.

    `model_config` is the base's config.json. Code that comes with a base is left to its loading.
    """
    quiet_bitsandbytes()  # before PEFT, which imports it
    import peft  # noqa: F401 - as all of these

    if method.storage is not Quant.NONE:
        import bitsandbytes  # noqa: F401
    package = str(model_config.get("model_type")).replace("-", "_")
    if package.isidentifier():
        with suppress(ImportError):  # no architecture of transformers, or one of another file
            importlib.import_module(f"transformers.models.{package}.modeling_{package}")


def quiet_bitsandbytes() -> None:
    """Keep it from advising a package with a kernel for inference, which training would not use."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
