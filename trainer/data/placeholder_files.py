"""Detects what stands in the place of a file: pointers, web pages, errors, other formats.

Sources: the Git LFS pointer specification (a text under 1024 bytes whose first line is `version`
and a URL), git-annex's internals (a link into, or a text that begins with, `/annex/objects/`),
DVC's files (`NAME.dvc` beside a file that is not there), Xet's pointers (`# xet version`), the
answers of Hugging Face, GitHub and S3 to who asks for what is not there, and the first bytes that
each format's description prescribes.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

HEAD_BYTES = 1024
LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
ANNEX = "annex/objects/"
XET = b"# xet version"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
BOM = b"\xef\xbb\xbf"
ERRORS = (
    *("entry not found", "not found", "404: not found", "404 not found", "repository not found"),
    *("file not found", "unauthorized", "forbidden", "access denied", "internal server error"),
    *("invalid username or password.", "too many requests", "bad gateway", "not acceptable"),
    *("invalid credentials in authorization header", "403 forbidden", "moved permanently"),
)
"""Whole answers of servers, in lower case."""
ERROR_BEGINNINGS = ("access to model ", "access to dataset ", "found. redirecting to ")
ERROR_KEYS = frozenset({"error", "errors"})
SAVE_AS = 'in a spreadsheet: save as "CSV UTF-8"'
UNPACK = "unpack it and name the file inside"
FORMATS = MappingProxyType(
    {
        b"\xff\xfe": f"UTF-16 text; save it as UTF-8; {SAVE_AS}",
        b"\xfe\xff": f"UTF-16 text; save it as UTF-8; {SAVE_AS}",
        b"\x1f\x8b": "gzip; let its name end in `.gz`",
        b"BZh": f"a bzip2 archive; {UNPACK}",
        b"\xfd7zXZ\0": f"an xz archive; {UNPACK}",
        b"\x28\xb5\x2f\xfd": f"a zstandard archive; {UNPACK}",
        b"7z\xbc\xaf\x27\x1c": f"a 7z archive; {UNPACK}",
        b"Rar!": f"a RAR archive; {UNPACK}",
        b"PAR1": "Parquet; let its name end in `.parquet`",
        b"ARROW1": "an Arrow file; write it as Parquet (`pyarrow.parquet.write_table`)",
        b"\xff\xff\xff\xff": "an Arrow stream, as `save_to_disk` writes; write it as Parquet "
        "(`Dataset.to_parquet`)",
        b"SQLite format 3\0": "an SQLite database; export its table as CSV",
        b"\x93NUMPY": "an array of NumPy; write its rows as JSON lines",
        b"\x89HDF": "an HDF5 file; write its rows as Parquet or JSON lines",
        b"\xd0\xcf\x11\xe0": f"an old Excel or Word file; {SAVE_AS}",
        b"%PDF": "a PDF; rows are read from tables only",
        b"{\\rtf": "a text of a word processor (RTF); save it as plain text",
        b"Obj\x01": "an Avro file; write it as Parquet or JSON lines",
        b"ORC": "an ORC file; write it as Parquet or JSON lines",
    }
)
"""What a file really is by its first bytes, when its name says that rows are in it."""
UTF16_BYTES = 8
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def describe_placeholder(path: Path) -> str:
    """Return what the file at `path` is instead of data, and what fetches it; empty if it is data.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_symlink() and not path.exists():
        aim = path.readlink().as_posix()
        if ANNEX in aim:
            return f"this is a git-annex link to what is not here: {_get('git annex get', path)}"
        return f"this is a link to `{aim}`, which is not there: fetch the file itself"
    if not path.exists():
        if path.with_name(f"{path.name}.dvc").is_file():
            return f"only its DVC pointer `{path.name}.dvc` is here: {_get('dvc pull', path)}"
        return ""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return describe_head(file.read(HEAD_BYTES), path)


def describe_head(head: bytes, path: Path) -> str:
    """Return what a file with this beginning, `HEAD_BYTES` long, is instead of data; or nothing."""
    text = head.removeprefix(BOM).lstrip()
    if text.startswith(LFS):
        return f"this is a Git LFS pointer: {_get('git lfs pull', path)}"
    if text.lstrip(b"./").startswith(ANNEX.encode()):
        return f"this is a git-annex pointer: {_get('git annex get', path)}"
    if text.startswith(XET):
        return "this is a Xet pointer: fetch the file (clone with git-xet installed)"
    if text.lower().startswith(PAGES):
        return "this is a web page that was saved under its name: download the file itself"
    if text.startswith(b"<?xml"):
        return "this is an XML answer that was saved under its name: download the file itself"
    if len(head) < HEAD_BYTES and (answer := _error_answer(text)):
        return (
            f"this is a server's answer that was saved under its name ({answer}): download the "
            "file itself, signed in if it asks for that"
        )
    return ""


def describe_format(head: bytes) -> str:
    """Return which format a file with this beginning has, if no rows are read in it."""
    if head.startswith(b"PK"):
        if b"xl/" in head or b"[Content_Types].xml" in head or b"mimetypeapplication/" in head:
            return f"a spreadsheet, whatever its name; {SAVE_AS}"
        return f"a zip archive or a spreadsheet, whatever its name; {UNPACK}, or {SAVE_AS}"
    if head.startswith(PICKLES):
        return "a pickle, which could run any code and is not opened; write its rows as JSON lines"
    if len(head) > UTF16_BYTES and 0 in (sum(head[0:UTF16_BYTES:2]), sum(head[1:UTF16_BYTES:2])):
        return FORMATS[b"\xff\xfe"]  # without its mark: every second byte is zero
    if head[257:262] == b"ustar":
        return f"a tar archive; {UNPACK}"
    return next((is_ for sign, is_ in FORMATS.items() if head.startswith(sign)), "")


def _error_answer(text: bytes) -> str:
    """Return what a server answered instead of the file, if that is all there is."""
    words = text.decode("utf-8", "replace").strip()
    if words.casefold() in ERRORS or words.casefold().startswith(ERROR_BEGINNINGS):
        return words.splitlines()[0][:80]
    if not words.startswith("{"):
        return ""
    try:
        table = json.loads(words)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(table, dict):
        return ""
    refused = ERROR_KEYS & set(table) and len(table) <= len(ERROR_KEYS) + 1
    return words[:80] if refused or {"message", "documentation_url"} <= set(table) else ""


def _get(command: str, path: Path) -> str:
    return f"fetch the file (`{command}` in `{path.parent}`)"
