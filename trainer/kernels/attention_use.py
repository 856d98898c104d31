"""Finds out what a model asks of its attention, by watching one pass over two short rows.

transformers lets each layer call a function that is registered under a name, and makes masks by
another one of the same name. What a layer hands over decides whether a faster function may take its
place; the config of an architecture has too many spellings of that to be read instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.kernels.kernel_set import Card

OBSERVED = "qft_observed"
SDPA = "sdpa"
ROW_LENGTHS = (5, 11)


@dataclass(kw_only=True)
class AttentionUse:
    """What the attention functions of a model were called with."""

    configs: list[Any] = field(default_factory=list)
    """Whose `_attn_implementation` decides which function a layer calls."""
    layers: int = 0
    """Calls of the function."""
    windows: dict[int, int] = field(default_factory=dict)
    """By the identity of a layer's attention, how many tokens it sees: the last ones."""
    chunk: int | None = None
    """Within so many tokens every layer sees all before; beyond, masks are not merely windows."""
    dropout: float = 0.0
    """The largest of any layer, while training."""
    head_dims: set[tuple[int, int]] = field(default_factory=set)
    """Of keys and of values."""
    problems: list[str] = field(default_factory=list)
    """Why no function without a mask may take the place of SDPA."""
    masks: list[tuple[torch.Tensor, int | None]] = field(default_factory=list)
    """What was made while watching, and of how many tokens a window it is; forgotten then."""

    @property
    def problem(self) -> str | None:
        """The first reason to leave attention as it is."""
        return self.problems[0] if self.problems else None


def observe_attention(model: Any, card: Card) -> AttentionUse:
    """Run `model` once, as in training but without gradients, and return what its layers ask for.

    The model, its modes and torch's generators are as before when it returns.
    """
    use = AttentionUse(configs=configs_with(model, SDPA))
    if getattr(model.config, "is_encoder_decoder", False):
        use.problems.append("an encoder reads padding and all tokens, and needs its mask")
    elif not use.configs:
        use.problems.append("its attention is not SDPA")
    if use.problems:
        return use
    _register(use)
    ids, mask = padded_rows(model, card)
    with _as_in_training(model, card), using(use.configs, OBSERVED):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    if not use.layers:
        use.problems.insert(0, "its layers compute attention by code of their own")
    elif not use.masks:
        use.problems.append("it makes its masks by code of its own")
    use.masks.clear()
    return use


def configs_with(model: Any, implementation: str) -> list[Any]:
    """Return each config object of a module of `model` that asks for this implementation."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation_internal", None) == implementation:
            found[id(config)] = config
    return list(found.values())


@contextmanager
def using(configs: list[Any], implementation: str) -> Iterator[None]:
    """Let the layers of these configs call what is registered under this name, while inside."""
    before = [config._attn_implementation_internal for config in configs]  # noqa: SLF001
    try:
        for config in configs:  # the public setter would change the configs inside of it as well
            config._attn_implementation_internal = implementation  # noqa: SLF001
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value  # noqa: SLF001


def row_ids(model: Any, card: Card) -> list[torch.Tensor]:
    """Return the token ids of the rows that a model is tried with: spread over its vocabulary."""
    words = model.get_input_embeddings().num_embeddings
    ids = torch.arange(sum(ROW_LENGTHS), device=card.device)
    spread = ids * max(words // (len(ids) + 1), 1) % words
    return list(spread.split(list(ROW_LENGTHS)))


def padded_rows(model: Any, card: Card) -> tuple[torch.Tensor, torch.Tensor]:
    """Return these rows as one right-padded batch, and its attention mask."""
    rows = row_ids(model, card)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], True)


def _register(use: AttentionUse) -> None:
    """Put functions into transformers' tables that note what they get, and compute with SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(module: Any, *tensors: Any, **more: Any) -> Any:
        use.layers += 1
        _note_call(use, module, tensors, more)
        return sdpa_attention_forward(module, *tensors, **more)

    def make_mask(*sizes: Any, **more: Any) -> torch.Tensor | None:
        if not more.get("allow_is_causal_skip", True):
            use.problems.append("its mask is more than causal")
        local: int | None = more.get("local_size")
        window = local if local is not None and _is_window(more["mask_function"], local) else None
        if local is not None and window is None:
            use.chunk = local if use.chunk is None else min(use.chunk, local)
        mask: torch.Tensor | None = sdpa_mask(*sizes, **more)
        if mask is not None:
            use.masks.append((mask, window))
        return mask

    AttentionInterface.register(OBSERVED, attend)
    AttentionMaskInterface.register(OBSERVED, make_mask)


def _note_call(use: AttentionUse, module: Any, tensors: tuple[Any, ...], more: Any) -> None:
    named = dict(zip(("query", "key", "value", "attention_mask"), tensors, strict=False)) | more
    use.head_dims.add((named["key"].shape[-1], named["value"].shape[-1]))
    use.dropout = max(use.dropout, float(named.get("dropout") or 0.0))
    causal = named.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        use.problems.append("a layer attends to later tokens")
    for name in ("position_bias", "cache", "softcap"):
        if named.get(name) is not None:
            use.problems.append(f"a layer calls its attention with a `{name}`")
    mask = named.get("attention_mask")
    found = [window for one, window in use.masks if mask is not None and _same_memory(mask, one)]
    if not found:
        use.problems.append("a layer changes its mask before it is used")
    elif found[0] is not None:
        use.windows[id(module)] = found[0]


def _is_window(mask_function: Any, size: int) -> bool:
    """Tell whether a mask lets each token see the last `size` tokens, itself among them.

    A mask by chunks has a size, too, and lets the first token of a chunk see itself alone.
    """
    zero = torch.tensor(0)
    last, inside = torch.tensor(size), torch.tensor(1)
    sees_inside, sees_outside = (bool(mask_function(zero, zero, last, at)) for at in (inside, zero))
    return sees_inside and not sees_outside


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


@contextmanager
def _as_in_training(model: Any, card: Card) -> Iterator[None]:
    """Set training mode without gradients; leave modes and generators as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [card.device] if card.device.type == "cuda" else []
    try:
        model.train()
        with torch.no_grad(), torch.random.fork_rng(devices=devices), autocast(card):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocast(card: Card) -> torch.autocast:
    """Return the choice of types that the passes of the run are computed with."""
    mixed = card.dtype in {torch.float16, torch.bfloat16}
    return torch.autocast(card.device.type, dtype=card.dtype if mixed else None, enabled=mixed)
