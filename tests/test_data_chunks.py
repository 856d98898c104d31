"""What is converted depends on the bytes of a file, and never on how they happen to be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.__main__ import main
from trainer.data import rows
from trainer.data.convert import convert
from trainer.data.converters import FORMATS, TOXIC, ConversionStats, ConvertOptions
from trainer.data.rows import READERS, Row, read_rows
from trainer.errors import DataError

PIECES = (1, 2, 3, 7, 64, 8191, 8192, 8193)
NASTY = 'ends here" \n\n,"¡señor! 你好 \U0001f9e8"",\r\n\u0085\u2028 and "" so on'


class Trickle(io.RawIOBase):
    """A file that gives at most so many bytes at a time, as a slow disk or network may."""

    def __init__(self, body: bytes, piece: int) -> None:
        super().__init__()
        self.inner, self.piece = io.BytesIO(body), piece

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next piece."""
        got = self.inner.read(min(self.piece, len(buffer)))
        buffer[: len(got)] = got
        return len(got)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be wound back, as the look for a byte order mark wants."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Wind back."""
        return self.inner.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self.inner.tell()


def trickled(body: bytes, piece: int) -> IO[bytes]:
    """Return a buffered file over pieces; the buffer is as small as the piece."""
    return io.BufferedReader(Trickle(body, piece), buffer_size=piece)


def jigsaw(count: int, *, broken: bool) -> bytes:
    """Comments with every oddity of the true file, and one in eleven not UTF-8 if `broken`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "comment_text", *TOXIC])
    for number in range(count):
        flags = [number % 5 == 0, False, number % 10 == 0, False, False, False]
        mark = " BROKEN" if broken and number % 11 == 0 else ""
        writer.writerow([f"{number:016x}", f'"{number}{mark} {NASTY}', *map(int, flags)])
    return text.getvalue().encode().replace(b"BROKEN", b"\xe4\xbd|\xff\xf0\x9f")


def test_comments_are_the_same_whatever_the_size_of_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of 1 to 8,193 bytes give the same two files, the same tally and the same places."""
    path = tmp_path / "train.csv"
    body = jigsaw(300, broken=True)
    path.write_bytes(body)
    options = ConvertOptions(benign=60)
    found: set[tuple[bytes, bytes, str]] = set()
    for piece in PIECES:
        monkeypatch.setattr(rows, "_open_plain", lambda _, size=piece: trickled(body, size))
        done = convert("jigsaw", path, tmp_path / "out", options=options, held_out=0.2)
        learnt, held_out = (tmp_path / "out" / f"{side}.jsonl" for side in ("train", "eval"))
        found.add((learnt.read_bytes(), held_out.read_bytes(), done.stats.table()))

    assert len(found) == 1
    learn, keep, message = found.pop()
    assert "left out:      28  does not decode (train.csv:1, train.csv:12" in message
    texts = [json.loads(line)["text"] for line in (learn + keep).splitlines()]
    assert len(texts) == 54 + 60  # of 60 toxic ones six do not decode
    assert all(text.endswith(NASTY) for text in texts)


@given(shift=st.integers(0, 120), packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_boundary_of_a_block_falls_badly(*, shift: int, packed: bool) -> None:
    """Wherever the end of a reader's own 8,192-byte block lies in a cell, the cell is whole."""
    head = "x" * (8192 - 60 + shift - len("a,b\n"))
    body = f'a,b\n"{head}{NASTY.replace(chr(34), chr(34) * 2)}",last\n'.encode()
    path = Path("rows.csv")
    file: IO[bytes] = io.BytesIO(body)
    if packed:
        file = gzip.open(io.BytesIO(gzip.compress(body)))  # type: ignore[assignment]  # noqa: SIM115 - it is one, in memory
    problems: list[str] = []
    found = list(READERS[".csv"](path, file, problems))

    assert problems == []
    assert found == [Row(number=1, fields={"a": head + NASTY, "b": "last"})]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
def test_packed_in_one_piece_or_many_a_file_is_the_same(ending: str, tmp_path: Path) -> None:
    """A gzip file of one member, of many, and the plain file hold the same rows."""
    table = [{"a": f"{number} {NASTY}", "b": "x" * number} for number in range(40)]
    body = written(table, ending)
    plain, whole, many = (tmp_path / f"{name}{ending}" for name in ("plain", "whole", "many"))
    whole, many = whole.with_name(f"{whole.name}.gz"), many.with_name(f"{many.name}.gz")
    plain.write_bytes(body)
    whole.write_bytes(gzip.compress(body))
    many.write_bytes(b"".join(gzip.compress(part) for part in cut(body, 97)))
    found = [[dict(row.fields) for row in read_rows(path)] for path in (plain, whole, many)]

    assert found == [table, table, table]


@pytest.mark.parametrize("size", [1, 7, 1024, 5000])
def test_the_row_groups_of_a_parquet_file_do_not_show(size: int, tmp_path: Path) -> None:
    """However many rows a group holds, rows and their numbers are the same."""
    table = [{"Context": f"why {n} {NASTY}", "Response": f"so {n // 2}"} for n in range(2500)]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(table), path, row_group_size=size)
    stats = ConversionStats()
    found = list(FORMATS["counselling"].convert(path, ConvertOptions(), stats))

    assert [row["context"] for row in found] == [row["Context"] for row in table]
    assert [row.number for row in read_rows(path)] == list(range(1, 2501))
    assert (stats.read, stats.kept) == (2500, 2500)


@pytest.mark.parametrize("side", ["train", "eval"])
def test_a_source_is_never_replaced_by_its_own_rows(side: str, tmp_path: Path) -> None:
    """Published rows that lie in the file to write, also by a link, stay as they are."""
    source = tmp_path / f"{side}.jsonl"
    source.write_text('{"text": "well", "label": "good", "id": 7}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    for name in (source, tmp_path / "link.jsonl"):
        with pytest.raises(DataError, match="name another --out"):
            convert("sentiment", name, tmp_path, options=ConvertOptions(), held_out=0.5)

    assert '"id": 7' in source.read_text()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("seed", "uneven"), [(3, True), (0, False)])
def test_a_group_of_most_rows_on_the_side_of_few_is_a_warning(
    tmp_path: Path, seed: int, *, uneven: bool
) -> None:
    """Groups stay whole, so nine tenths of the rows may be held out for one asked for."""
    source = tmp_path / "pairs.csv"
    lines = ["the same,good\n"] * 90 + [f"other {number},bad\n" for number in range(40)]
    source.write_text("text,label\n" + "".join(lines))
    done = convert("sentiment", source, tmp_path, options=ConvertOptions(seed=seed), held_out=0.1)

    assert (done.held_out > done.train) is uneven
    assert ("of the rows are held out where 10% was asked for" in done.to_text()) is uneven


def test_a_place_where_no_rows_can_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the place of the folder is told in a sentence."""
    (tmp_path / "pairs.csv").write_text("text,label\nwell,good\n")
    place = tmp_path / "pairs.csv"

    assert main(["convert", "sentiment", str(place), "--out", str(place)]) == 78
    assert f"--out: no rows could be written: {place}: File exists" in capsys.readouterr().err


def written(table: list[dict[str, str]], ending: str) -> bytes:
    """Return rows in a format of text."""
    if ending == ".json":
        return json.dumps(table, ensure_ascii=False).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def cut(body: bytes, piece: int) -> Iterator[bytes]:
    """Yield the body in pieces, through characters and cells alike."""
    for at in range(0, len(body), piece):
        yield body[at : at + piece]
