"""Looks whether a model reads from one side only: a later token must not change what came before.

Encoders and diffusion models load as causal ones in transformers, train without an error, and
cannot write afterwards. One changed token shows it, whatever the config says.
"""

from __future__ import annotations

from typing import Any

import torch

from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.model import DTYPES

TOKENS = 12
ROUNDING_STEPS = 8
"""Of the arithmetic, over the largest logit: tokens of a mixture are computed in other groups."""
INT8_STEP = 1 / 127
"""LLM.int8 rounds so, and which columns it rounds depends on all tokens."""


def require_causal(base: Any, precision: Precision) -> None:
    """Raise `ConfigError` if a base's last token changes what it says after earlier ones.

    An encoder-decoder may read both ways, and is not asked. The model is left as it was: nothing is
    trained or drawn.
    """
    if getattr(base.config, "is_encoder_decoder", False):
        return
    words = base.get_input_embeddings().num_embeddings
    ids = torch.arange(TOKENS, device=base.device) * max(words // (TOKENS + 1), 1) % words
    other = ids.clone()
    other[-1] = (ids[-1] + max(words // 2, 1)) % words
    was_training = base.training
    base.eval()
    devices = [base.device] if base.device.type == "cuda" else []
    autocast = torch.autocast(
        base.device.type, dtype=DTYPES[precision.compute], enabled=precision.autocast
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), autocast:
            found = [
                base(
                    input_ids=one[None], attention_mask=torch.ones_like(one)[None], use_cache=False
                ).logits[0, :-1]
                for one in (ids, other)
            ]
    finally:
        base.train(was_training)
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


def _rounding(base: Any, dtype: torch.dtype) -> float:
    """Return the relative step of the roughest arithmetic in a model."""
    kinds = {dtype, *(value.dtype for value in base.parameters() if value.is_floating_point())}
    step = max(torch.finfo(one).eps for one in kinds)
    eight_bits = any(type(module).__name__ == "Linear8bitLt" for module in base.modules())
    return max(step, INT8_STEP) if eight_bits else step
