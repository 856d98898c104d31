"""What is done of a scoring is kept row by row, and a killed one goes on behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.scoring.kept_rows import KeptRows

FACTS = {"data": "abc", "rows": 3}


def test_rows_are_there_again_under_the_same_facts(tmp_path: Path) -> None:
    """A second look finds every row that was kept, in any order of adding."""
    kept = KeptRows(tmp_path / "a" / "rows.jsonl", FACTS)
    kept.add({"1": {"text": "yes"}})
    kept.add({"0": {"text": "größer\n"}, "2": {"text": ""}})

    again = KeptRows(tmp_path / "a" / "rows.jsonl", FACTS)

    assert [again.get(str(at)) for at in range(4)] == [
        {"text": "größer\n"},
        {"text": "yes"},
        {"text": ""},
        None,
    ]
    assert len(again) == 3


def test_rows_of_other_facts_are_not_taken(tmp_path: Path) -> None:
    """Of other rows nothing is taken, and the file becomes that of the new ones."""
    path = tmp_path / "rows.jsonl"
    KeptRows(path, FACTS).add({"0": {"text": "old"}})

    other = KeptRows(path, {**FACTS, "data": "xyz"})
    assert other.get("0") is None
    other.add({"0": {"text": "new"}})

    assert KeptRows(path, {**FACTS, "data": "xyz"}).get("0") == {"text": "new"}
    assert KeptRows(path, FACTS).get("0") is None


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_costs_one_row(tmp_path: Path, cut: int) -> None:
    """After a kill in the middle of a line the rows before it stand, and that one is done again."""
    path = tmp_path / "rows.jsonl"
    kept = KeptRows(path, FACTS)
    kept.add({"0": {"text": "first"}})
    kept.add({"1": {"text": "a second row that is torn"}})
    path.write_bytes(path.read_bytes()[:-cut])

    again = KeptRows(path, FACTS)
    assert again.get("0") == {"text": "first"}
    assert again.get("1") is None
    again.add({"1": {"text": "done again"}})

    assert KeptRows(path, FACTS).get("1") == {"text": "done again"}
