"""A price or budget that is written as text is answered with the number to write."""

from __future__ import annotations

import pytest

from commands.runs.written_numbers import number_problem

BOTH = "without a unit and with a point for the decimals"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0,20", "`0,20` is no number; write `0.20`, with a point for the decimals"),
        ("$0.20", "`$0.20` is no number; write `0.20`, without a unit"),
        ("0.2 USD/h", "`0.2 USD/h` is no number; write `0.2`, without a unit"),
        ("€0,2", f"`€0,2` is no number; write `0.2`, {BOTH}"),
        ("5 dollars per hour", "`5 dollars per hour` is no number; write `5`, without a unit"),
        ("cheap", "`cheap` is no number; write digits only, such as `0.25`"),
        ("1,000.50", "`1,000.50` is no number; write digits only, such as `0.25`"),
        ("", "`` is no number; write digits only, such as `0.25`"),
    ],
)  # fmt: skip
def test_a_text_is_answered_with_the_number_in_it(text: str, problem: str) -> None:
    """A comma becomes a point, a unit goes, and what has no number gets an example."""
    assert number_problem(text, shown=text) == problem


@pytest.mark.parametrize(("text", "value"), [("24h", "24"), ("$5", "5"), ("1 000", "1000")])
def test_a_whole_number_is_read_likewise(text: str, value: str) -> None:
    """Where a whole number belongs, one is suggested."""
    assert f"write `{value}`" in number_problem(text, shown=text, whole=True)


def test_no_whole_number_is_made_of_decimals() -> None:
    """`2,5` evictions are none, and not rounded."""
    assert number_problem("2,5", shown="2,5", whole=True).endswith("such as `20`")
