"""Rows are read whole with their places, or the user learns everything that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from trainer.data.rows import read_rows
from trainer.data.template import Template, TemplateError
from trainer.errors import DataError


def test_a_csv_cell_may_span_lines_and_numbers_count_rows(tmp_path: Path) -> None:
    """Records are counted, not physical lines, and cells come back byte for byte."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\r\n0a,"one\r\ntwo, ""three"""\r\n0b,\xc2\x85x\n')
    rows = [(row.number, dict(row.fields)) for row in read_rows(path)]

    assert rows == [
        (1, {"id": "0a", "text": 'one\r\ntwo, "three"'}),
        (2, {"id": "0b", "text": "\x85x"}),
    ]


def test_jsonl_rows_carry_their_line(tmp_path: Path) -> None:
    """Blank lines are passed over, and separators inside a string do not break a line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\n\n{"a": 2}\n'.encode())

    assert [(row.number, dict(row.fields)) for row in read_rows(path)] == [
        (1, {"a": "x\u2028y"}),
        (3, {"a": 2}),
    ]


def test_packed_and_columnar_files_give_the_same_rows(tmp_path: Path) -> None:
    """Gzip and Parquet are read like the plain file of the same rows."""
    rows = [{"text": "a\nb", "n": 1}, {"text": "c", "n": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")

    for name in ("a.jsonl.gz", "a.parquet"):
        assert [dict(row.fields) for row in read_rows(tmp_path / name)] == rows


def test_a_json_list_is_read(tmp_path: Path) -> None:
    """A `.json` file is a list of objects, numbered from one."""
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2}]')

    assert [row.number for row in read_rows(path)] == [1, 2]


def test_a_json_file_may_hold_an_object_a_line(tmp_path: Path) -> None:
    """Some publish JSON lines under `.json`: they are read as such, also behind a mark."""
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n')

    assert [(row.number, dict(row.fields)) for row in read_rows(path)] == [
        (1, {"a": 1}),
        (3, {"a": 2}),
    ]


def test_marks_and_blanks_that_mean_nothing_do_not_matter(tmp_path: Path) -> None:
    """A comma within a quoted name separates nothing, and a line of spaces is no row."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'"text, all of it";mood\na, b;c\n  \n')

    assert [dict(row.fields) for row in read_rows(path)] == [
        {"text, all of it": "a, b", "mood": "c"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b" \n\n", "a.jsonl: the file holds no rows"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "a.jsonl.gz: is no whole gzip file"),
        ("a.parquet", b"PAR1", "a.parquet:1: not Parquet"),
        ("a.json", b"[]", "a.json: the file holds no rows"),
        ("a.csv", b"id,text\n", "a.csv: the file holds no rows"),
        ("a.json", b'{"a": 1}', "a.json: a `.json` file must hold a list of objects"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl:1: not UTF-8 (byte 0xff at 7)"),
        ("a.csv", b"id,text\n1,a\n2,\xe9\n", "a.csv:2: not UTF-8 (byte 0xe9)"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a row must be a JSON object, this one is a list"),
        ("a.csv", b"id,text\n1,a,b\n", "a.csv:1: 3 cells where the header has 2"),
        ("a.csv", b"id,id\n1,a\n", "a column name stands twice"),
        ("a.csv", b'id,text\n1,"a\n', "a.csv:1: not CSV (unexpected end of data"),
        ("a.jsonl", b'{"a": {"b": ["\\ud83d"]}}\n', "a.jsonl:1: holds half of a character"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "a.jsonl:1: JSON that cannot be read (a num"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: JSON that cannot be read (too deep)"),
        ("a.json", b"[" * 100_000, "a.json: JSON that cannot be read (too deep)"),
        ("a.xlsx", b"x", "`.xlsx` is not a format qft reads"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    """Each kind of damage has a message that names the file, and the row where there is one."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(path)

    assert message in str(caught.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    """Neither is a traceback."""
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="is a directory"):
        read_rows(tmp_path / "d.jsonl")


def test_all_broken_rows_are_found_at_once(tmp_path: Path) -> None:
    """Two broken lines are two problems of one error."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": \n{"a": 1}\n\xff\n')
    with pytest.raises(DataError) as caught:
        read_rows(path)

    assert [f"{path}:1", f"{path}:3"] == [p.split(": ")[0] for p in caught.value.problems]


def test_what_ends_the_parsing_is_named_before_the_rest(tmp_path: Path) -> None:
    """Where a quote is never closed no later row can be trusted; earlier faults are kept."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,\xff\n2,"a "b" c\n3,d\n')
    with pytest.raises(DataError) as caught:
        read_rows(path)

    assert [f"{path}:2: not CSV", f"{path}:1: not UTF-8"] == [
        problem.partition(" (")[0] for problem in caught.value.problems
    ]


def test_a_template_fills_nested_fields_braces_and_lists() -> None:
    """Dots reach into objects, doubled braces are braces, lists of words are joined."""
    template = Template.parse("{{{meta.library}}} {labels} {n}\n  ")

    assert template.fields == ("meta.library", "labels", "n")
    assert (
        template.render({"meta": {"library": "Pandas"}, "labels": ["a", "b"], "n": 3})
        == "{Pandas} a, b 3\n  "
    )


@pytest.mark.parametrize("text", ["{", "{}", "{a!r}", "{a:>3}", "a}"])
def test_a_broken_template_is_refused(text: str) -> None:
    """A template is plain `{field}` or an error that shows it."""
    with pytest.raises(TemplateError, match="the template"):
        Template.parse(text)
