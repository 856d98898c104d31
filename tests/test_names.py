"""Names are the field's terms: a list of words that only this project used stays out of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("cli.py", "commands", "infra", "remote", "trainer", "examples", "tests")
PRIVATE = frozenset(
    re.findall(
        r"\w+",
        """
        admit aloud arrived asked bench boots cadence chores course demanded desk dial door doubt
        drive exam examiner fault forecast foresee foretell gold guard guarded guarding guards guest
        halted heard homing hush keeper known life link looking lookout material news onto ordinal
        owed parity patience portion powers primed protect pursue question recap rights rigour said
        say setting settle sheet shelf shots signin sit site smuggled speaker staged staging switch
        takeover talk tally teardown tell told travelled trip unset vmwatch watchdog weigh wire worn
        """,
    )
)
"""Words whose field's term is another one: `docs/glossary.md` lists what stayed, and why."""
FIELD = (
    "known_hosts",
    "exclude_unset",
    "shots",
    "onto",
    "tell",
    "link",
    "powers_of_two",
    "_ExcludeDispatchKeyGuard",
    "bench",
)
"""Names of OpenSSH, pydantic, torch, make, files and the system; words of run.yaml, commands."""


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name in a syntax tree, with its line: definitions, variables, attributes, keywords."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield line, name
            case ast.ClassDef(name=name):
                yield line, name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield line, name
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield line, name
            case ast.ImportFrom(module=str(module), names=aliases):
                yield from ((line, part) for part in module.split("."))
                yield from ((line, one.asname or one.name) for one in aliases)
            case ast.Import(names=aliases):
                yield from ((line, part) for one in aliases for part in one.name.split("."))
            case _:
                continue


def words(name: str) -> set[str]:
    """The words of a name in snake case, camel case or capitals, in lower case."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def private_words(name: str) -> set[str]:
    """The private words in a name that is not one of the field's own."""
    return set() if name in FIELD or "known_hosts" in name else words(name) & PRIVATE


def python_files(place: str) -> list[Path]:
    """The Python files of one of the places."""
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("place", PLACES)
def test_no_name_has_a_private_word(place: str) -> None:
    """No file, class, function, parameter, attribute or variable is called by a private word."""
    found = []
    for path in python_files(place):
        where = path.relative_to(ROOT)
        found += [f"{where}: {part}" for part in where.with_suffix("").parts if private_words(part)]
        for line, name in names(ast.parse(path.read_text(encoding="utf-8"))):
            if private_words(name):
                found.append(f"{where}:{line}: {name}")

    assert found == []


def test_a_private_word_would_be_noticed() -> None:
    """The check above sees such a word in any case, as a part of a name of any kind."""
    source = (
        "from infra.desk import X\nclass RunDesk: ...\ndef f(a_desk, *, k=1): f(k=DESK_S).desks"
    )

    found = [name for _, name in names(ast.parse(source)) if private_words(name)]

    assert sorted(found) == ["DESK_S", "RunDesk", "a_desk", "desk"]
