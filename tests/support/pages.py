"""Reads a page as a browser's parser would, and tells what it holds and what it reaches for."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "line", "rect", "polyline", "br", "link", "img"}
EMBEDDED = "application/json"


@dataclass
class Page:
    """What stands on a page: `scripts` are those that run, `data` what is embedded for them."""

    plots: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    text: str = ""
    marked: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    policy: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []
        self.kind = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "figure" and "aria-label" in values:
            self.page.plots.append(values["aria-label"])
        elif tag == "svg" and values.get("role") == "img" and "div" not in self.open[-1:]:
            self.page.plots.append(values.get("aria-label", ""))
        if tag == "script":
            kind = self.page.data if values.get("type") == EMBEDDED else self.page.scripts
            kind.append("")
        outside = {values.get(key, "#")[:1] for key in ("src", "href")} - {"#"}
        if tag in {"link", "iframe", "object", "base", "form"} or outside:
            self.page.foreign.append(tag)
        if any(name.startswith("on") for name in values):
            self.page.foreign.append(f"{tag} with a handler")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.page.policy = values["content"]
        self.kind = values.get("type", "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            (self.page.data if self.kind == EMBEDDED else self.page.scripts)[-1] += data
            return
        if self.open[-1:] == ["style"]:
            return
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
