"""Holds a token in memory so that no message, record or dump of an object shows it."""

from __future__ import annotations

HIDDEN = "***"


class Secret:
    """A text that is shown to nobody: as `str` and `repr` it is `***`, and it is never pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one who has to use it."""
        return self._text

    def hide_in(self, text: str) -> str:
        """Return `text` with `***` wherever the secret stood."""
        return text.replace(self._text, HIDDEN) if self._text else text

    def __repr__(self) -> str:
        """Show nothing of it."""
        return HIDDEN

    def __reduce__(self) -> str:
        """Refuse to be written anywhere."""
        raise TypeError("a secret is not written")
