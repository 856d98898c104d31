"""Reads a page as a browser's parser would, and tells what it holds and what it reaches for."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "line", "rect", "polyline", "br", "link", "img"}


@dataclass
class Page:
    """What stands on a page."""

    plots: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    text: str = ""
    marked: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "svg":
            self.page.plots.append(values.get("aria-label") or "")
        if tag in {"script", "link", "iframe", "object"} or {"src", "href"} & set(values):
            self.page.foreign.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.page.text += data
        if self.open[-1:] == ["h2"]:
            self.page.headings.append(data)
        if self.open[-1:] == ["mark"]:
            self.page.marked.append(data)


def read(text: str) -> Page:
    """Parse a page; tags that do not match fail."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader.page
