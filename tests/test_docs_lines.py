"""Documents keep to 120 columns, are wrapped alike, and name only files that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")]
)
HISTORY = ("CHANGELOG.md", "docs/log/")
"""Pages that keep the file names of their day."""
COLUMNS = 120
FILLED = 85
"""A line of a paragraph is not broken where the next word would still end within so many."""
OWN = re.compile(
    r"(?<![\w/.-])(?:\.ci|commands|docs|examples|infra|remote|tests|trainer)/[\w./*-]*[\w/]"
)
MADE = re.compile(r"/out/|/model/|\.jsonl|[A-Z]{2,}/")
"""What preparing and running make, and placeholders."""
MODULE = re.compile(r"(?<![\w/.])(?:commands|infra|remote|trainer)(?:\.[a-z_0-9]+)+")
UNIT = re.compile(r"\S*`[^`]*`\S*|\S+")


def name(page: Path) -> str:
    """The page as seen from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Each line with its number, and whether it is in a block of code."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        yield number, line, fenced or fence or line.startswith("    ")
        fenced ^= fence


def paragraphs(page: Path) -> Iterator[tuple[int, str, str]]:
    """Each line of a paragraph or list item that is followed by another, and that one."""
    before = ""
    for number, line, code in lines(page):
        goes_on = re.match(r" {0,3}(?![-*|#<!] ?|\d+\. |$)\S", line) and not code
        if goes_on and before:
            yield number - 1, before, line
        apart = code or line.startswith(("|", "#", "<", "!")) or not line.strip()
        before = "" if apart else line


def test_there_are_pages() -> None:
    """The README, the pages of docs/, the diary and the recipes are all looked at."""
    names = {name(page) for page in PAGES}

    assert {"README.md", "CHANGELOG.md", "docs/design.md", "examples/quickstart/README.md"} <= names
    assert any(one.startswith("docs/log/") for one in names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_longer_than_120(page: Path) -> None:
    """Tables aside, no line of a document is longer than 120 characters, code included."""
    long = [
        f"{number}: {len(line)}"
        for number, line, _ in lines(page)
        if len(line) > COLUMNS and not line.startswith("|")
    ]

    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paragraphs_are_wrapped_alike(page: Path) -> None:
    """No paragraph has a line that ends long before the margin, as a sentence a line would."""
    short = [
        f"{number}: {before}"
        for number, before, after in paragraphs(page)
        if len(before) + 1 + len(UNIT.findall(after)[0]) <= FILLED
    ]

    assert short == []


def test_the_files_that_are_named_exist() -> None:
    """Each file, folder or module of ours that a document names is in the tree."""
    missing, found = [], 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if name(page).startswith(HISTORY):
            continue
        for path in OWN.findall(text):
            if not MADE.search(path):
                found += 1
                missing += [f"{name(page)}: {path}"] if not any(ROOT.glob(path)) else []
        for module in MODULE.findall(text.replace("trainer.log", "")):
            found += 1
            missing += [f"{name(page)}: {module}"] if not is_module(module) else []

    assert missing == []
    assert found > 20


def is_module(dotted: str) -> bool:
    """Whether a module, or something that a module defines, has that name."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    owner = path.parent.with_suffix(".py")
    return owner.is_file() and f" {path.name}" in owner.read_text(encoding="utf-8")
