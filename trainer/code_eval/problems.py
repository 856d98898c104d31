"""Reads problems in the format of DS-1000 from rows, and makes the program that tests an answer.

A row has its test program in a field: it defines `test_execution(solution)`, which raises an error
for a wrong solution, and perhaps `test_string(solution)`, which looks at its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.code_eval.limits import Limits
from trainer.data.row import Row
from trainer.data.template import MissingFieldError, Template
from trainer.errors import DataError
from trainer.eval_tables.code import CodeEvalTable

LIBRARY_FIELDS = ("library", "metadata.library")
NO_LIBRARY = "all"
CUTS = ("</code>", "\nEND SOLUTION", "# SOLUTION END")
"""Marks of DS-1000's prompts behind which nothing belongs to a solution."""
FENCE = "```"
OPENING_FENCE = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\r?\n", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem: the number of its row, its library, its test program, and its own solution."""

    row: int
    library: str
    tests: str
    reference: str
    group: str | None = None
    """Problems of one group are near-duplicates: they are resampled together."""


def read_problems(
    rows: Iterable[Row], references: Mapping[int, str], table: CodeEvalTable, *, place: str
) -> list[Problem]:
    """Return the problems of the rows that `references` has a solution for, in their order.

    Raises:
        DataError: naming every row without a test program.
    """
    tests = Template.parse(f"{{{table.tests}}}")
    problems: list[str] = []
    found = []
    for row in rows:
        if row.number not in references:
            continue
        try:
            program = tests.render(row.fields)
        except MissingFieldError as error:
            problems.append(f"{place}:{row.number}: {error}")
            continue
        if "test_execution" not in program:
            problems.append(
                f"{place}:{row.number}: `{table.tests}` is no test program: it must define "
                "`test_execution(solution)`"
            )
            continue
        found.append(
            Problem(
                row=row.number,
                library=library_of(row.fields, table),
                tests=program,
                reference=references[row.number],
                group=str(row.fields["group"]) if row.fields.get("group") is not None else None,
            )
        )
    if problems:
        hint = (
            "`eval.tests` names the field; rows that `qft data ds1000` made before have none: "
            "make them again"
        )
        raise DataError([*problems, hint])
    return found


def library_of(fields: Mapping[str, Any], table: CodeEvalTable) -> str:
    """Return the library that a problem is about; `all` where its row does not say."""
    names: Sequence[str] = LIBRARY_FIELDS if table.library is None else (table.library,)
    for name in names:
        try:
            found = Template.parse(f"{{{name}}}").render(fields).strip()
        except MissingFieldError:
            continue
        if found:
            return found
    return NO_LIBRARY


def clean_answer(text: str) -> str:
    """Return the code of an answer: what DS-1000 cuts off is cut off, and no space is stripped.

    Of a text with a fence that says it is Python, only what is fenced counts; any other fence ends
    the code, unless nothing is before it. A first line that begins with spaces keeps them.
    """
    opening = OPENING_FENCE.search(text)
    if opening is not None:
        text = text[opening.end() :]
    elif text.lstrip().startswith(FENCE):
        text = text.lstrip().removeprefix(FENCE).partition("\n")[2]
    text = text.partition(FENCE)[0]
    for mark in CUTS:
        text = text.partition(mark)[0]
    return text.replace("<code>", "")


def program_for(problem: Problem, code: str) -> str:
    """Return the program that passes, without an error, if `code` solves the problem."""
    lines = [problem.tests, f"code = {code!r}", "test_execution(code)"]
    if "test_string(" in problem.tests:
        lines.append("test_string(code)")
    return "\n".join(lines) + "\n"


def limits_of(table: CodeEvalTable) -> Limits:
    """Return the limits of one answer."""
    return Limits(wall_s=table.seconds, memory_bytes=round(table.memory_gb * 2**30))
