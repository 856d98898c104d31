"""What spreadsheets, databases and pandas export is read as it was meant, or refused by its cause.

Each case has the public report or the program's own documentation of its form beside it.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from trainer.data.cell import CellError, parse_cell
from trainer.data.convert import convert
from trainer.data.converters import FORMATS, ConversionStats, ConvertOptions
from trainer.data.rows import Notes, read_rows
from trainer.data.template import Template
from trainer.errors import DataError

ROWS = [{"text": f"Is shelf {n} free?", "label": ("yes", "no")[n % 2]} for n in range(4)]
TEXTS, LABELS = [row["text"] for row in ROWS], [row["label"] for row in ROWS]


def read(path: Path, content: str | bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Write a file and return its rows and the notes on how it was read."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    notes = Notes()
    return [dict(row.fields) for row in read_rows(path, notes)], notes.lines()


def refused(path: Path, content: str | bytes) -> str:
    """Write a file and return why it is refused."""
    with pytest.raises(DataError) as caught:
        read(path, content)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        # SQuAD's own form, and what people wrap rows into (huggingface/datasets#372).
        ({"version": "1.1", "data": ROWS}, "`data`"),
        ({"train": ROWS}, "`train`"),
        ({"meta": {"source": "x"}, "items": ROWS}, "`items`"),
        ({"result": {"rows": ROWS, "count": 4}}, "`rows` within `result`"),
        # pandas.DataFrame.to_json: the documented orientations (mindsdb/mindshub#8042).
        ({"columns": ["text", "label"], "index": [0, 1, 2, 3],
          "data": [list(row.values()) for row in ROWS]}, "orient=split"),
        ({"text": {str(n): text for n, text in enumerate(TEXTS)},
          "label": {str(n): label for n, label in enumerate(LABELS)}}, "orient=columns"),
        ({str(n): row for n, row in enumerate(ROWS)}, "orient=index"),
        ({f"q{n}": row for n, row in enumerate(ROWS)}, "orient=index"),
        ({"schema": {"fields": [{"name": "text"}], "pandas_version": "1.4.0"}, "data": ROWS},
         "`data`"),
        # datasets.Dataset.to_dict, and `/rows` of the data set server.
        ({"text": TEXTS, "label": LABELS}, "as a column"),
        ({"features": [{"feature_idx": 0, "name": "text"}], "partial": False,
          "num_rows_total": 900, "rows": [
            {"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(ROWS)
        ]}, "4 of 900"),
    ],
)  # fmt: skip
def test_wrapped_rows_are_found(tmp_path: Path, content: dict[str, Any], note: str) -> None:
    """The rows inside an object are read, and it is told where they were."""
    rows, notes = read(tmp_path / "rows.json", json.dumps(content, indent=1))

    assert rows == ROWS
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ROWS, "test": ROWS}, "holds several, `train`, `test`"),
        ({"train": {"text": TEXTS}, "test": {"text": TEXTS}}, "several splits, `train`, `test`"),
        ({"rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": ["text"]}]}, "cut cells"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
         "a single object with the keys `messages`"),
        ({"builder_name": "json", "splits": {}}, "the keys `builder_name`, `splits`"),
        ({"columns": ["a", "a"], "data": [[1, 2]]}, "stands twice"),
    ],
)  # fmt: skip
def test_an_object_without_one_list_of_rows_is_refused_by_its_keys(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    """Several lists, a conversation alone, a description of a data set: each is named."""
    problem = refused(tmp_path / "rows.json", json.dumps(content))

    assert "a `.json` file must hold a list of objects" in problem
    assert message in problem


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_nan_is_null_and_counted_by_column(tmp_path: Path, name: str) -> None:
    """NaN, infinities and too large numbers are null (accelerate#74, vowpal_wabbit#3738)."""
    rows = [{"q": "a", "a": math.nan}, {"q": "b", "a": 1.5}, {"q": "c", "a": -math.inf}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        content = path.read_bytes()
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        content = json.dumps(rows).encode() if name.endswith(".json") else lines.encode()
    content = gzip.compress(content) if name.endswith(".gz") else content
    found, notes = read(path, content)

    assert [row["a"] for row in found] == [None, 1.5, None]
    assert notes == ["`a`: NaN or an infinity is read as null (2 rows: 1, 3)"]
    assert read(tmp_path / "large.jsonl", '{"a": [1e999, {"b": NaN}]}')[0] == [
        {"a": [None, {"b": None}]}
    ]


@pytest.mark.parametrize("cell", ["NaN", "nan", "<NA>", "\\N", "#N/A"])
def test_a_programs_word_for_nothing_is_null_in_a_table(tmp_path: Path, cell: str) -> None:
    """The `nan` of pandas (pandas#25353), MySQL's and PostgreSQL's NULL, Excel's error."""
    rows, notes = read(tmp_path / "rows.csv", f"text,label\na,{cell}\nb,nan bread\n")

    assert [row["label"] for row in rows] == [None, "nan bread"]
    assert notes == [f"`label`: a cell of `{cell}` alone is read as null (row 1)"]


@pytest.mark.parametrize("word", ["None", "N/A", "NULL", "NA", "-"])
def test_a_word_that_may_be_an_answer_stays(tmp_path: Path, word: str) -> None:
    """What people write for "none of them" is a label like others: the reader keeps it."""
    rows, notes = read(tmp_path / "rows.csv", f"text,label\na,{word}\n")

    assert (rows, notes) == ([{"text": "a", "label": word}], [])


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "\ufeffsep=;\n"])
def test_excels_line_names_the_separator(tmp_path: Path, first: str) -> None:
    """The line is no header, and its separator counts, with numbers that have commas too."""
    rows, _ = read(tmp_path / "rows.csv", f"{first}text;a, b\nx;1,5\n")

    assert rows == [{"text": "x", "a, b": "1,5"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "text|label\na, b|c\n"),
        ("rows.csv", "text, short;label\na, b;c\nd, e, g;f\n"),
        ("rows.csv", "text;label;\na, b;c;\n"),
        ("rows.csv", 'text,label\n"a, b",c,,\n,,\n'),
        ("rows.tsv", "text\tlabel\t\t\na, b\tc\t\t\n"),
    ],
)
def test_separators_of_all_programs_are_found(tmp_path: Path, name: str, content: str) -> None:
    """Pipes, a comma inside a name, and empty cells at the end of lines or of the file."""
    rows, _ = read(tmp_path / name, content)

    assert rows[0]["label"] == "c"
    assert next(iter(rows[0].values())) == "a, b"


def test_quotes_escaped_by_backslashes_are_read_and_noted(tmp_path: Path) -> None:
    r"""As MySQL and Spark write: `\"` is a quote, other backslashes stay (pandas#21862, #33720)."""
    content = 'text,label\n"C:\\\\new \\"x\\", y",good\n"a \\n b \\\n c",bad\n'
    rows, notes = read(tmp_path / "rows.csv", content)

    assert rows == [
        {"text": 'C:\\new "x", y', "label": "good"},
        {"text": "a \\n b \n c", "label": "bad"},
    ]
    assert notes == ["read as a table in which a quote within a cell has a backslash before it"]


def test_a_well_formed_file_is_read_as_the_standard_says_whatever_it_holds(tmp_path: Path) -> None:
    """JSON in a cell, whose own quotes have backslashes, is not taken for another dialect."""
    cell = json.dumps({"say": 'a "b"'})
    content = 'text,label\n"{}",x\n'.format(cell.replace('"', '""'))
    rows, notes = read(tmp_path / "rows.csv", content)

    assert json.loads(rows[0]["text"]) == {"say": 'a "b"'}
    assert notes == []


def test_a_tsv_with_stray_quotes_is_read_as_databases_write_it(tmp_path: Path) -> None:
    """The programs mysql and psql quote nothing: an inch sign is a character (as in GLUE's QQP)."""
    content = 'text\tlabel\n"Ten" inches\ta\n5" pipe\t\\N\n'
    rows, notes = read(tmp_path / "rows.tsv", content)

    assert rows == [{"text": '"Ten" inches', "label": "a"}, {"text": '5" pipe', "label": None}]
    assert notes[0] == "read as a table in which quotes are characters like any other"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\n"a" b,c\n', "a.csv:1: not CSV"),
        ("a.csv", "text,label\n“a, b”,c\n", "typographic quote"),
        ("a.csv", "text,label\n1,a,b\n", "a.csv:1: 3 cells where the header has 2"),
        ("a.csv", "text,text\n1,a\n", "a column name stands twice"),
        (
            "a.csv",
            '{"text": "a", "label": "b"}\n',
            "this is JSON, not a table; let its name end in",
        ),
        ("a.jsonl", "text,label\na,b\n", "a.jsonl:1: not JSON (this looks like a table"),
        ("a.jsonl", '{"a": {"b": 1, "b": 2}}\n', "a.jsonl:1: the key `b` stands twice"),
        ("a.json", '[{"a": 1, "a": 2}]', "a.json: the key `a` stands twice"),
        ("a.jsonl", '[{"a": 1}, {"a": 2}]\n', "a list of objects goes into a `.json` file"),
        ("a.jsonl", json.dumps('{"a": 1}') + "\n", "the row was encoded twice"),
        ("a.jsonl", '{"a": 1}{"a": 2}\n', "more follows the object, from column 9"),
        ("a.jsonl", '{"a": None}\n', "JSON writes `null` for `None`"),
        ("a.jsonl", '{"a": nan}\n', "JSON writes `null` for `nan`"),
        ("a.json", '[{"a": True}]\n', "JSON writes `true` for `True`"),
        ("a.jsonl", "{“a”: 1}\n", "typographic"),
        ("a.json", '{\n"a": 1}\n{\n"a": 2}\n', "objects follow one another: put a comma"),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_its_cause(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    """The usual slips of hands and programs each have their own words."""
    assert message in refused(tmp_path / name, content)


def test_two_columns_of_one_name_are_refused_in_parquet(tmp_path: Path) -> None:
    """Of two values one would be lost, in this format as in the others."""
    path = tmp_path / "a.parquet"
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, path)

    assert "a column name stands twice" in refused(path, path.read_bytes())


def foreign(tmp_path: Path, kind: str) -> bytes:
    """Make a file of another format by the program that owns it."""
    buffer = io.BytesIO()
    table = pa.table({"text": ["a"], "label": ["b"]})
    if kind in {"zip", "xlsx"}:
        inner = "xl/workbook.xml" if kind == "xlsx" else "train.csv"
        with zipfile.ZipFile(buffer, "w") as packed:
            packed.writestr(inner, "text,label\na,b\n")
    elif kind == "npy":
        np.save(buffer, np.array([1.5]))
    elif kind == "arrow":
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, buffer)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, buffer)
    elif kind == "sqlite":
        with sqlite3.connect(tmp_path / "db") as database:
            database.execute("CREATE TABLE rows (text, label)")
        return (tmp_path / "db").read_bytes()
    return buffer.getvalue()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".json"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zip", "a zip archive or a spreadsheet, whatever its name; unpack it"),
        ("xlsx", "a spreadsheet, whatever its name"),
        ("npy", "an array of NumPy"),
        ("arrow", "an Arrow stream, as `save_to_disk` writes"),
        ("feather", "an Arrow file"),
        ("parquet", "let its name end in `.parquet`"),
        ("sqlite", "an SQLite database"),
    ],
)
def test_a_file_of_another_format_is_called_by_its_name(
    tmp_path: Path, ending: str, kind: str, message: str
) -> None:
    """The first bytes tell what a file is, whatever its name says."""
    content = foreign(tmp_path, kind)
    if kind == "parquet" and ending == ".parquet":
        assert read(tmp_path / "a.parquet", content)[0] == [{"text": "a", "label": "b"}]
    else:
        assert message in refused(tmp_path / f"a{ending}", content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95\x10\x00", "a pickle, which could run any code"),
        ('{"a": "b"}\n'.encode("utf-16-le"), "UTF-16 text"),
        ('{"a": "b"}\n'.encode("utf-16-be"), "UTF-16 text"),
        (b"BZh91AY", "a bzip2 archive"),
        (b"\x28\xb5\x2f\xfd\x04", "a zstandard archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel or Word file"),
        # What the hub, GitHub and S3 answer to who asks for what is not there, or not for him.
        (b"Entry not found", "a server's answer that was saved under its name"),
        (b"Invalid username or password.", "a server's answer"),
        (b"404: Not Found", "a server's answer"),
        (b'{"error":"Repository not found"}', "a server's answer"),
        (b'{"message": "Not Found", "documentation_url": "https://docs"}', "a server's answer"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "an XML answer"),
        (b"# xet version 0\nfilesize = 12\n", "a Xet pointer"),
    ],
)
def test_what_is_no_data_at_all_is_called_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Archives, pickles and answers of servers under the name of rows; also packed."""
    assert message in refused(tmp_path / "a.jsonl", content)
    assert message in refused(tmp_path / "a.jsonl.gz", gzip.compress(content))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 12\n"


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"]
)
def test_a_pointer_is_reported_in_every_format(tmp_path: Path, name: str) -> None:
    """A pointer of Git LFS is one whatever its name ends in (transformers#23099)."""
    assert "this is a Git LFS pointer: fetch the file (`git lfs pull`" in refused(
        tmp_path / name, LFS
    )


TURNS = [{"role": "user", "content": 'it\'s\na "test" }'}, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TURNS),
        repr(TURNS),  # pandas' to_csv of a list (pandas#58906)
        "[" + "\n ".join(map(repr, TURNS)) + "]",  # of an array of objects, as Parquet gives it
        f"array({TURNS!r}, dtype=object)",
    ],
)
def test_a_list_in_a_cell_is_parsed_whoever_printed_it(text: str) -> None:
    """JSON, Python's and numpy's way of printing give the same turns."""
    assert parse_cell(text) == TURNS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[__import__('os').getcwd()]", "neither JSON nor a Python list"),
        ("[{'role': 'user', 'content': open('x')}]", "neither JSON nor"),
        ('[{"role": "user", "role": "system"}]', "the key `role` stands twice"),
        ("[" * 100_000, "neither JSON"),
        ("[" + "1," * 16_383, "Excel cut it at 32,767 characters"),
        ('["\\ud83d"]', "half of a character"),
    ],
)
def test_a_list_in_a_cell_that_cannot_be_parsed_is_refused_and_never_run(
    text: str, message: str
) -> None:
    """Code, broken brackets and what a spreadsheet cut off are told; nothing is executed."""
    with pytest.raises(CellError, match=message):
        parse_cell(text)


def converted(path: Path, kind: str, content: str) -> tuple[list[dict[str, Any]], ConversionStats]:
    """Convert a file as `qft data` does."""
    path.write_text(content, encoding="utf-8")
    stats = ConversionStats()
    return list(FORMATS[kind].convert(path, ConvertOptions(), stats)), stats


def test_published_forms_are_read_from_exports_too(tmp_path: Path) -> None:
    """`qft data` reads conversations in cells, Excel's line and pandas' nothing, and notes it."""
    turns = [{"from": "human", "value": "Is it's?"}, {"from": "gpt", "value": "Yes."}]
    cell = str(turns).replace('"', '""')
    conversations, _ = converted(
        tmp_path / "a.csv", "conversations", f'id,conversations\n1,"{cell}"\n2,"[{{"\n'
    )
    moods, stats = converted(
        tmp_path / "b.csv", "sentiment", "sep=;\ntext;label\ngood, old;1.0\nx;NaN\n"
    )

    assert [row["messages"][0]["content"] for row in conversations] == ["Is it's?"]
    assert [row["label"] for row in moods] == ["positive"]
    assert stats.left_out == {"no text or no label": 1}
    assert "note: `label`: a cell of `NaN` alone is read as null (row 2)" in stats.table()


def test_a_table_without_names_is_refused_with_its_first_line(tmp_path: Path) -> None:
    """Where no row can be kept because the first one was taken for names, that is said."""
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"Is shelf {n} free?\t{n % 2}\n" for n in range(20)))

    with pytest.raises(DataError, match="the first line seems to hold values"):
        convert("sentiment", path, tmp_path / "out", options=ConvertOptions(), held_out=0.1)


def test_an_object_in_a_cell_has_fields(tmp_path: Path) -> None:
    """`{outer.inner}` reaches into JSON that a table holds as text."""
    rows, _ = read(tmp_path / "a.csv", 'meta,label\n"{""city"": ""Ulm""}",x\n"{torn",y\n')
    template = Template.parse("In {meta.city}?").for_rows(rows)

    assert [template.render(row) for row in rows] == ["In Ulm?", "In ?"]


def test_numbers_of_classes_are_named_by_the_file_that_describes_them(tmp_path: Path) -> None:
    """A Parquet file of `datasets` says what its labels stand for, and that is told."""
    feature = {"names": ["negative", "positive"], "_type": "ClassLabel"}
    described = {"info": {"features": {"label": feature, "text": {"_type": "Value"}}}}
    table = pa.table({"text": ["a"], "label": [1]})
    for metadata in (json.dumps(described), "[" * 99, "{}"):
        pyarrow.parquet.write_table(
            table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet"
        )
        rows, notes = read(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes())

        assert rows == [{"text": "a", "label": 1}]
        names = "`label`: its numbers stand for 0 'negative', 1 'positive', as the file says"
        assert notes == ([f"{names}; write the words"] if "names" in metadata else [])
