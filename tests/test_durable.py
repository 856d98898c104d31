"""Durable files are whole or absent, and a lock has one holder at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.durable import LockTimeout, append_line, locked, read_json, write_bytes, write_json


def test_json_comes_back(tmp_path: Path) -> None:
    """What was written is what is read, and only the owner may read it."""
    write_json(tmp_path / "a.json", {"ü": [1, None]})

    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600


def test_absent_file_is_none(tmp_path: Path) -> None:
    """A file that was never written reads as None."""
    assert read_json(tmp_path / "missing" / "a.json") is None


def test_damaged_file_is_named(tmp_path: Path) -> None:
    """A file that is not JSON is refused by name."""
    (tmp_path / "a.json").write_text("{")

    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_unwritable_value_changes_nothing(tmp_path: Path) -> None:
    """A value that JSON cannot hold leaves the old file and no temporary one."""
    write_json(tmp_path / "a.json", 1)

    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", float("nan"))

    assert read_json(tmp_path / "a.json") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    """If the target cannot be replaced, the temporary file beside it is removed."""
    (tmp_path / "target").mkdir()

    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "target", b"x")

    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_append_closes_a_torn_line(tmp_path: Path) -> None:
    """A record after a torn one starts on a line of its own."""
    path = tmp_path / "j.jsonl"
    append_line(path, '{"n": 1}')
    with path.open("ab") as file:
        file.write(b'{"n": 2')

    append_line(path, '{"n": 3}')

    assert path.read_text().splitlines() == ['{"n": 1}', '{"n": 2', '{"n": 3}']


def test_append_refuses_two_lines(tmp_path: Path) -> None:
    """A record with a line break inside is refused before the file exists."""
    with pytest.raises(ValueError, match="one line"):
        append_line(tmp_path / "j.jsonl", "a\nb")

    assert not (tmp_path / "j.jsonl").exists()


def test_concurrent_appends_keep_every_line(tmp_path: Path) -> None:
    """Writers in several threads lose no line and tear none."""
    path = tmp_path / "j.jsonl"

    def work(who: int) -> None:
        for n in range(10):
            append_line(path, json.dumps({"who": who, "n": n}))

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    seen = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert sorted((s["who"], s["n"]) for s in seen) == [(w, n) for w in range(4) for n in range(10)]


def test_lock_has_one_holder(tmp_path: Path) -> None:
    """A second taker is refused after its patience, and learns who holds the lock."""
    with (
        locked(tmp_path / "lock"),
        pytest.raises(LockTimeout, match=f"process {os.getpid()}"),
        locked(tmp_path / "lock", timeout_s=0.0),
    ):
        pass

    with locked(tmp_path / "lock", timeout_s=0.0):
        pass


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """A holder killed without warning frees the lock."""
    script = (
        "import sys, pathlib\nfrom infra.durable import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockTimeout), locked(tmp_path / "lock", timeout_s=0.0):
            pass
        holder.kill()
        holder.wait()

    with locked(tmp_path / "lock", timeout_s=0.0):
        pass


def test_a_path_that_is_no_text_survives_in_a_record(tmp_path: Path) -> None:
    """A folder named in another encoding comes back as it was, from a file that is UTF-8."""
    folder = b"caf\xe9".decode(errors="surrogateescape")

    write_json(tmp_path / "record.json", {"path": folder})

    assert read_json(tmp_path / "record.json") == {"path": folder}
    assert (tmp_path / "record.json").read_text(encoding="utf-8").isascii()
