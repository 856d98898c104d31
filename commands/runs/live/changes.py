"""What of a page changed since a version that a browser has; pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

Sections = Sequence[tuple[str, str]]
"""The sections of a page from top to bottom: the id of the element, and its HTML."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The sections of a page at one version, each with the version at which it last changed."""

    version: int = 0
    """Grows with every change, from 1; 0 is the empty page."""
    sections: tuple[tuple[str, str], ...] = ()
    changed_at: tuple[int, ...] = ()
    ended: bool = False
    """Whether the run has ended, so that no change is to be expected."""

    def after(self, sections: Sections, *, ended: bool) -> Snapshot:
        """Return the next version; this one if nothing changed."""
        if tuple(sections) == self.sections and ended == self.ended:
            return self
        version = self.version + 1
        before = dict(zip(self.sections, self.changed_at, strict=True))
        return Snapshot(
            version=version,
            sections=tuple(sections),
            changed_at=tuple(before.get(section, version) for section in sections),
            ended=ended,
        )

    def event(self, since: int) -> bytes:
        """Return what a browser that has version `since` needs, as a server-sent event.

        Its data is `{"version", "order": [id, …], "sections": {id: html}}`. The event is called
        `end` once the run has ended, else `sections`. A version that never was gets everything.
        """
        has = since if 0 <= since <= self.version else 0
        changed = {
            key: html
            for (key, html), at in zip(self.sections, self.changed_at, strict=True)
            if at > has
        }
        order = [key for key, _ in self.sections]
        data = json.dumps({"version": self.version, "order": order, "sections": changed})
        name = "end" if self.ended else "sections"
        return f"event: {name}\nid: {self.version}\ndata: {data}\n\n".encode()
