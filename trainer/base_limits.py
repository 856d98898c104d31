"""What a base can take: ids that its embedding has a row for, and texts of a length it knows.

Both are read from its config. A token beyond the embedding ends a process on a GPU with an assert
of the device, in the middle of a step, and names neither token nor row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError, DataError

LEARNT_PLACES = frozenset(
    {
        "bart", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small", "codegen", "ctrl",
        "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "led", "marian", "mbart", "openai-gpt", "opt",
        "plbart",
    }
)  # fmt: skip
"""Architectures that look a place up in a table: beyond its end there is nothing to look up."""
RELATIVE_PLACES = frozenset({"t5", "mt5", "umt5", "longt5", "bloom", "mpt"})
"""Architectures that only know how far two tokens lie apart, at any length."""
ADDED_ROWS = {"mllama": 8}
"""Rows of the embedding beyond `vocab_size`: pictures have tokens of their own there."""
TOKENS_SHOWN_MAX = 5


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many tokens a text of the base may have; `learnt` if there is nothing beyond."""

    count: int
    learnt: bool


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a base's config that is about texts: all of it, or of one that sees."""
    for key in ("text_config", "llm_config", "thinker_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return text_config(inner) if key == "thinker_config" else inner
    return config


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """Return for how many token ids the base has an embedding, None if its config does not say."""
    text = text_config(config)
    rows = text.get("vocab_size", config.get("vocab_size"))
    if type(rows) is not int or rows < 1:
        return None
    return rows + ADDED_ROWS.get(str(config.get("model_type")), 0)


def model_rows(model: Any) -> int | None:
    """Return for how many token ids a loaded model has an embedding."""
    embeddings = model.get_input_embeddings()
    return None if embeddings is None else int(embeddings.weight.shape[0])


def places(config: Mapping[str, Any]) -> Places | None:
    """Return how long texts may be for the text model of a base, None if any length will do."""
    text = text_config(config)
    kind = str(text.get("model_type", config.get("model_type")))
    if kind in RELATIVE_PLACES:
        return None
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        count = text.get(key)
        if type(count) is int and count > 0:
            learnt = kind in LEARNT_PLACES
            return Places(count=count if learnt else _stretched(text, count), learnt=learnt)
    return None


def _stretched(text: Mapping[str, Any], count: int) -> int:
    """Return the length that a config reaches by scaling its rotations, if it says so."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return count
    factor, first = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        return count
    return max(count, int(factor * (first if type(first) is int and first > 0 else count)))


def require_embedded(
    numbered: Iterable[tuple[int, Sequence[int]]], rows: int | None, tokenizer: Any
) -> None:
    """Raise DataError if there is a token that the base's embedding, of so many rows, lacks.

    `numbered` are rows of the data by their numbers, each with its tokens.
    """
    if rows is None:
        return
    first: dict[int, int] = {}
    for row, tokens in numbered:
        if max(tokens, default=0) >= rows:
            for token in tokens:
                if token >= rows:
                    first.setdefault(token, row)
    if not first:
        return
    shown = [
        f"{tokenizer.convert_ids_to_tokens(token)!r} (number {token}, row {row})"
        for token, row in sorted(first.items())[:TOKENS_SHOWN_MAX]
    ]
    if len(first) > len(shown):
        shown.append(f"and {len(first) - len(shown)} more")
    lacks = f"the base's embedding has {rows} rows, and the data has tokens beyond: "
    cause = (
        "the tokenizer in the base's directory belongs to another base, or tokens were added to it "
        "without resizing the base. Take the tokenizer that was published with the base, or keep "
        "these tokens out of the rows"
    )
    raise DataError([f"{lacks}{', '.join(shown)}; {cause}"])


def require_places(longest: int, limit: Places | None) -> str | None:
    """Return what to warn of if the longest row is longer than the base's texts were; else None.

    Raises:
        ConfigError: the base has no places for it at all.
    """
    if limit is None or longest <= limit.count:
        return None
    if limit.learnt:
        has = f"a row has {longest} tokens, and the base has places for {limit.count}"
        raise ConfigError([f"train.max_length: {has}; set it to {limit.count} or less"])
    return (
        f"a row has {longest} tokens, and the base was made for texts of {limit.count} at most: "
        f"set `train.max_length` to {limit.count} or less, or take a base of a longer context"
    )


def require_embedded_roles(rows: int | None, tokenizer: Any) -> None:
    """Raise ConfigError if a token with a role, such as padding, lies beyond the embedding."""
    for role in ("pad_token", "eos_token", "bos_token"):
        number = getattr(tokenizer, f"{role}_id", None)
        if rows is not None and type(number) is int and number >= rows:
            text = getattr(tokenizer, role)
            fix = "name a token that exists, take the base's own tokenizer, or resize the base"
            if role == "pad_token":
                fix = "delete it from the tokenizer's files: padding is by a token that exists"
            has = f"number {number}, and the base's embedding has {rows} rows"
            raise ConfigError([f"model.id: the tokenizer's `{role}` {text!r} is {has}; {fix}"])


def check_token_limits(
    config: Mapping[str, Any], numbered: Iterable[tuple[int, Sequence[int]]], tokenizer: Any
) -> list[str]:
    """Return what to warn of in rows of tokens that a base of this config would read.

    Raises:
        DataError, ConfigError: it cannot read them.
    """
    rows, id_count = list(numbered), embedding_rows(config)
    require_embedded_roles(id_count, tokenizer)
    require_embedded(rows, id_count, tokenizer)
    warning = require_places(max((len(one) for _, one in rows), default=0), places(config))
    return [warning] if warning else []
