"""Reads numbers of a `config.json`, checked: what is not as expected makes the shape unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.device.model_shape import UnknownShapeError

NUMBER_MAX = 1 << 31
LAYERS_MAX = 1 << 12
SHOWN_CHARACTERS = 40


class Sizes:
    """The values of one config; `defaults` are those of transformers' class for absent keys."""

    def __init__(
        self, kind: str, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.kind = kind
        self._config = {**(defaults or {}), **config}

    def number(self, *keys: str, default: int | None = None) -> int:
        """Return the value of the first of these keys that is there, a whole number above 0.

        Raises:
            UnknownShapeError: there is none and no default, or it is something else.
        """
        found = self.optional(*keys)
        if found is None:
            found = default
        if found is None:
            raise UnknownShapeError(f"its config.json has no `{keys[0]}`")
        if not found:
            raise self._odd(keys[0], found)
        return found

    def optional(self, *keys: str) -> int | None:
        """Return the value of the first of these keys that is there, None if that is null.

        Raises:
            UnknownShapeError: it is no whole number from 0.
        """
        for key in keys:
            value = self._config.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value <= NUMBER_MAX:
                raise self._odd(key, value)
            return value
        return None

    def is_null(self, key: str) -> bool:
        """Tell whether `key` is there without a value, which is another thing than its default."""
        return key in self._config and self._config[key] is None

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return whether `key` is true; raises UnknownShapeError if it is neither."""
        value = self._config.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._odd(key, value)
        return value

    def whether(self, flag: bool | str, *, default: bool = False) -> bool:  # noqa: FBT001 - a choice
        """Return a fixed answer, or that of the key which `flag` names."""
        return self.flag(flag, default=default) if isinstance(flag, str) else flag

    def text(self, key: str, default: str = "") -> str:
        """Return a text; raises UnknownShapeError if it is something else."""
        value = self._config.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._odd(key, value)
        return value

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """Return a list of whole numbers from 0, None if it is absent."""
        value = self._config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
            raise self._odd(key, value)
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of texts, None if it is absent."""
        value = self._config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._odd(key, value)
        return tuple(value)

    def part(self, key: str, defaults: Mapping[str, Any] | None = None) -> Sizes:
        """Return the values of a config inside this one; an absent one has the defaults alone."""
        value = self._config.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._odd(key, value)
        return Sizes(self.kind, value, defaults)

    @property
    def layers(self) -> int:
        """The number of layers."""
        found = self.number("num_hidden_layers")
        if found > LAYERS_MAX:
            raise self._odd("num_hidden_layers", found)
        return found

    def refuse_set(self, *keys: str) -> None:
        """Raise UnknownShapeError if one of these is set: the formula does not have it."""
        for key in keys:
            if self._config.get(key):
                raise self._odd(key, self._config[key])

    @staticmethod
    def _odd(key: str, value: object) -> UnknownShapeError:
        shown = repr(value)
        if len(shown) > SHOWN_CHARACTERS:
            shown = f"{shown[:SHOWN_CHARACTERS]}…"
        return UnknownShapeError(f"its config.json has {shown} as `{key}`")
