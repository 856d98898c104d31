"""Detects pointer files of Git LFS, git-annex and DVC, and web pages saved under a file's name.

Sources: the Git LFS pointer specification (a text under 1024 bytes whose first line is `version`
and a URL), git-annex's internals (a link into, or a text that begins with, `/annex/objects/`),
DVC's files (`NAME.dvc` beside a file that is not there).
"""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 1024
LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
ANNEX = "annex/objects/"
PAGES = (b"<!doctype html", b"<html", b"<head")
BOM = b"\xef\xbb\xbf"


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
        head = file.read(HEAD_BYTES).removeprefix(BOM).lstrip()
    if head.startswith(LFS):
        return f"this is a Git LFS pointer: {_get('git lfs pull', path)}"
    if head.lstrip(b"./").startswith(ANNEX.encode()):
        return f"this is a git-annex pointer: {_get('git annex get', path)}"
    if head.lower().startswith(PAGES):
        return "this is a web page that was saved under its name: download the file itself"
    if head.startswith(b"<?xml"):
        return "this is an XML answer that was saved under its name: download the file itself"
    return ""


def _get(command: str, path: Path) -> str:
    return f"fetch the file (`{command}` in `{path.parent}`)"
