"""Looks whether a model reads from one side only: a later token must not change what came before.

Encoders and diffusion models load as causal ones in transformers, train without an error, and
cannot write afterwards. One changed token shows it, whatever the config says.
"""

from __future__ import annotations

from typing import Any

import torch

from trainer.device.out_of_memory import is_out_of_memory
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.model import DTYPES

TOKENS = 12
ROUNDING_STEPS = 8
"""Of the arithmetic, over the largest logit: tokens of a mixture are computed in other groups."""
INT8_STEP = 1 / 127
"""LLM.int8 rounds so, and which columns it rounds depends on all tokens."""

_UNABLE = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


def require_causal(base: Any, precision: Precision) -> None:
    """Raise `ConfigError` if a base's last token changes what it says after earlier ones.

    Also if it cannot read tokens at all, as Mamba in 4 bits: another start would end so, too. An
    encoder-decoder may read both ways, and is not asked. The model is left as it was: nothing is
    trained or drawn.
    """
    if getattr(base.config, "is_encoder_decoder", False):
        return
    words = base.get_input_embeddings().num_embeddings
    ids = torch.arange(TOKENS, device=base.device) * max(words // (TOKENS + 1), 1) % words
    other = ids.clone()
    other[-1] = (ids[-1] + max(words // 2, 1)) % words
    try:
        found = [_logits(base, one, precision)[:-1] for one in (ids, other)]
    except _UNABLE as error:
        of_device = is_out_of_memory(error) or isinstance(error, torch.AcceleratorError)
        if of_device or "CUDA" in str(error).upper():  # otherwise elsewhere, or at another time
            raise
        stored = " with quantised weights; try `kind: lora`" if _is_quantised(base) else ""
        reason = " ".join(str(error).split())
        raise ConfigError(
            [f"model.id: this {type(base).__name__} cannot read a text{stored} ({reason})"]
        ) from error
    step = _rounding(base, found[0].dtype)
    first, second = (one.float() for one in found)
    gap, size = (first - second).abs().max(), first.abs().max()
    if bool(gap > ROUNDING_STEPS * step * size):
        reason = (
            f"model.id: this {type(base).__name__} is no causal model: with another last token it "
            f"says something else after the tokens before it (logits differ by {gap:.2g} of "
            f"{size:.2g}). It reads from both sides, as encoders do, and cannot learn to write"
        )
        raise ConfigError([reason])


def _logits(base: Any, ids: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the logits after each of some tokens, as the base has them without dropout."""
    was_training = base.training
    base.eval()
    devices = [base.device] if base.device.type == "cuda" else []
    autocast = torch.autocast(
        base.device.type, dtype=DTYPES[precision.compute], enabled=precision.autocast
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), autocast:
            mask = torch.ones_like(ids)[None]
            found = base(input_ids=ids[None], attention_mask=mask, use_cache=False)
    finally:
        base.train(was_training)
    logits: torch.Tensor = found.logits[0]
    return logits


def _is_quantised(base: Any) -> bool:
    """Tell whether a layer is kept in few bits."""
    kinds = {"Linear4bit", "Linear8bitLt"}
    return any(type(module).__name__ in kinds for module in base.modules())


def _rounding(base: Any, dtype: torch.dtype) -> float:
    """Return the relative step of the roughest arithmetic in a model."""
    kinds = {dtype, *(value.dtype for value in base.parameters() if value.is_floating_point())}
    step = max(torch.finfo(one).eps for one in kinds)
    eight_bits = any(type(module).__name__ == "Linear8bitLt" for module in base.modules())
    return max(step, INT8_STEP) if eight_bits else step
