"""Adds tokens to a base, and trains their rows of the embedding and the head (`model.new_tokens`).

A new token gets the number after the last one, and the mean of all rows that the base has for its
own tokens: computed in float32 from the files' weights, so that every start makes the same row.
PEFT trains the rows alone (`trainable_token_indices`), in float32, and rounds them as the base is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.base_limits import model_rows, text_config
from trainer.errors import ConfigError

DELTA = ".token_adapter.trainable_tokens_delta"
"""How the names of trained rows end in PEFT's files."""
ROWS = "qft_trained_rows"
"""The attribute of a base that holds the numbers of the tokens whose rows are trained."""


def add_to(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add what `tokenizer` does not know yet; return the number of every token.

    They are found in any text, as they are written, and stay in what is decoded.
    """
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab()
    fresh = [AddedToken(one, normalized=False) for one in tokens if one not in vocabulary]
    if fresh:
        tokenizer.add_tokens(fresh)
    return [int(tokenizer.convert_tokens_to_ids(one)) for one in tokens]


def grow_config(model_config: Any, ids: Sequence[int]) -> None:
    """Let the description of a base say how many rows its embedding will have."""
    text = model_config.get_text_config()
    text.vocab_size = max(text.vocab_size, 1 + max(ids))


def grow(base: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give a loaded base rows for tokens that are new to its tokenizer, and note their numbers.

    Raises:
        ConfigError: PEFT cannot train single rows of this base.
    """
    head = base.get_output_embeddings()
    if base.config.is_encoder_decoder or head is None:
        raise ConfigError(
            f"model.new_tokens: the embedding of a {type(base).__name__} is shared by encoder and "
            "decoder, and PEFT would train the rows of one; take a base that only decodes"
        )
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"model.new_tokens: the head of a {type(base).__name__} has a bias, which PEFT leaves "
            "out when it trains single rows; take a base without"
        )
    own = len(tokenizer)
    before = set(tokenizer.get_vocab().values())
    ids = add_to(tokenizer, tokens)
    fresh = [one for one in ids if one not in before]
    if ids and max(ids) >= (model_rows(base) or 0):
        base.resize_token_embeddings(1 + max(ids), mean_resizing=False)
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    sides = [base.get_input_embeddings()] + ([] if tied else [base.get_output_embeddings()])
    with torch.no_grad():
        for side in sides:
            if fresh:
                mean = side.weight[: min(own, *fresh)].float().mean(dim=0)
                side.weight[fresh] = mean.to(side.weight)
    base.requires_grad_(requires_grad=False)
    setattr(base, ROWS, tuple(ids))


def trained_rows(base: Any) -> dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices` for a base that has grown, empty for any other."""
    ids = getattr(base, ROWS, ())
    if not ids:
        return {}
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    wanted = {embedding} | ({head} if head.weight is not embedding.weight else set())
    return {name: list(ids) for name, module in base.named_modules() if module in wanted}


def train_in_float32(model: Any) -> None:
    """Bring the trained rows of a PEFT model to float32."""
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()


@dataclass(frozen=True, kw_only=True)
class TrainedRows:
    """The trained rows of one layer: the numbers of their tokens, and their values."""

    ids: tuple[int, ...]
    values: torch.Tensor

    @property
    def count(self) -> int:
        """How many rows the layer has at least."""
        return 1 + max(self.ids)

    def put_into(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` with these rows, below its own where it has none yet.

        Raises:
            ValueError: they do not fit, or would leave a row between without a value.
        """
        missing = set(range(len(weight), self.count)) - {*self.ids}
        if missing or weight.dim() != 2 or weight.shape[1] != self.values.shape[1]:
            raise ValueError(f"{tuple(weight.shape)}, the rows are {tuple(self.values.shape)}")
        grown = torch.cat(
            [weight, weight.new_zeros(max(0, self.count - len(weight)), weight.shape[1])]
        )
        grown[list(self.ids)] = self.values.to(grown)
        return grown


def read_rows(
    tensors: Mapping[str, torch.Tensor], indices: Mapping[str, Sequence[int]]
) -> dict[str, TrainedRows]:
    """Return the trained rows among the tensors of an adapter, by the names of the layers' weights.

    Raises:
        ValueError: the settings have no numbers, or another count of them, for a layer.
    """
    found = {}
    for key, values in tensors.items():
        if key.endswith(DELTA):
            name = key.removesuffix(DELTA)
            fits = [ids for layer, ids in indices.items() if f".{name}".endswith(f".{layer}")]
            if not fits or len(fits[0]) != len(values):
                raise ValueError(f"{key} has {len(values)} rows, and no numbers of as many tokens")
            found[f"{name}.weight"] = TrainedRows(ids=tuple(fits[0]), values=values)
    return found


def grown_rows(config: dict[str, Any], rows: int) -> None:
    """Write into a base's `config.json` that its embedding has at least so many rows."""
    text = text_config(config)
    assert isinstance(text, dict)
    text["vocab_size"] = max(text.get("vocab_size", 0), rows)
