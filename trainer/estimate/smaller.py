"""Says which changes of the config would make a training fit that does not; pure arithmetic.

They change what is learnt, or the arithmetic of the base: nobody but the user makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from trainer.config import TrainerConfig
from trainer.method_table import MethodKind, Quant

LENGTH_STEP = 32
LENGTH_MIN = 16
Change = dict[str, dict[str, Any]]


def what_would_fit(
    config: TrainerConfig,
    need_of: Callable[[TrainerConfig], float],
    *,
    longest: int,
    lacking_bytes: float,
) -> list[str]:
    """Return the smallest single changes that save `lacking_bytes`, as keys of run.yaml.

    `need_of` estimates the bytes of a config; `longest` is the length of the longest row. Changes
    that do not go together with the rest of the config are left out; there may be none.
    """
    enough = need_of(config) - lacking_bytes
    found = []
    for kind in (_shorter(longest), _lower_rank(config), _quantised(config)):
        for words, change in kind:
            other = changed(config, change)
            if other is not None and need_of(other) <= enough:
                found.append(words)
                break
    return found


def changed(config: TrainerConfig, change: Change) -> TrainerConfig | None:
    """Return the config with other values in some tables, None if it contradicts itself then."""
    tables = config.model_dump(mode="json", exclude_unset=True)
    for name, fields in change.items():
        tables[name] = {**(tables.get(name) or {}), **fields}
    try:
        return TrainerConfig.model_validate(tables)
    except ValidationError:
        return None


def _shorter(longest: int) -> Iterator[tuple[str, Change]]:
    """Yield ever shorter rows, the longest first."""
    first = (longest - 1) // LENGTH_STEP * LENGTH_STEP
    for length in [*range(first, 0, -LENGTH_STEP), LENGTH_MIN]:
        if length < longest:
            yield (
                f"train.max_length: {length} (of longer rows, `data.too_long` decides)",
                {"train": {"max_length": length}},
            )


def _lower_rank(config: TrainerConfig) -> Iterator[tuple[str, Change]]:
    """Yield ever lower ranks."""
    r = config.method.r
    while r > 1:
        r //= 2
        yield f"method.r: {r}", {"method": {"r": r}}


def _quantised(config: TrainerConfig) -> Iterable[tuple[str, Change]]:
    """Yield a base in four bits, if it is stored in more."""
    if config.method.storage.four_bit:
        return
    kind = config.method.kind
    if kind.quantised is None:
        yield "method.quant: nf4", {"method": {"quant": str(Quant.NF4)}}
    elif f"q{kind.on_any_base}" in {str(one) for one in MethodKind}:
        quantised = f"q{kind.on_any_base}"
        yield (
            f"method.kind: {quantised} (the base in four bits)",
            {"method": {"kind": quantised, "quant": str(Quant.NF4)}},
        )
