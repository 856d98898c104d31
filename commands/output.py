"""Data to stdout, talk to stderr: how results and troubles reach people and scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from commands.errors import Exit, Trouble


def tell_trouble(trouble: Trouble, *, as_json: bool) -> None:
    """Say what is wrong on stderr; with --json also as data, so that a script can read it."""
    talk(f"error: {trouble.message}")
    for problem in trouble.problems:
        talk(f"  - {problem}")
    if trouble.hint:
        talk(f"\nhint: {trouble.hint}")
    if as_json:
        said = {"error": trouble.message, "problems": trouble.problems, "hint": trouble.hint}
        out_json({**said, "exit_code": int(trouble.exit_code)})


def columns(rows: list[tuple[str, str]]) -> str:
    """Rows of a word and its fact, aligned."""
    width = max(len(word) for word, _ in rows)
    return "\n".join(f"{word:<{width}}  {fact}" for word, fact in rows)


def table(rows: list[dict[str, object]]) -> str:
    """A plain table: the keys as heading, a line per row."""
    heads = list(rows[0])
    cells = [heads, *([str(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    shape: Callable[[list[str]], str] = lambda line: "  ".join(  # noqa: E731
        cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    return "\n".join(shape(line) for line in cells)


def out(text: str) -> None:
    """Data, to stdout."""
    print(text)  # noqa: T201


def out_json(value: object) -> None:
    """Data as JSON, to stdout."""
    out(json.dumps(value, indent=2))


def talk(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr)  # noqa: T201


def last_resort(error: Exception, *, as_json: bool) -> int:
    """Usage errors of the parser, a full disk at home, a damaged journal; the rest is our bug."""
    from infra.journal import JournalDamaged

    say = getattr(error, "format_message", None)  # the parser's errors, whichever click it is
    if say is not None:
        tell_trouble(Trouble(say(), hint="`qft --help` lists every command"), as_json=as_json)
        return Exit.USAGE
    if isinstance(error, JournalDamaged):
        tell_trouble(Trouble(str(error), hint=error.hint), as_json=as_json)
        return Exit.USAGE
    if isinstance(error, OSError) and error.errno is not None:
        hint = "nothing was lost: make room or mend the rights, then run the same command again"
        tell_trouble(Trouble(f"this computer refused: {error}", hint=hint), as_json=as_json)
        return Exit.USAGE
    import traceback

    traceback.print_exception(error)
    talk("this is a bug in qft, and nothing you did wrong")
    talk("hint: `qft ls --all` shows what may still bill; `qft down` ends it")
    return Exit.BUG
