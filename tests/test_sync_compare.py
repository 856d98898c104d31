"""Equal trees are recognised by a digest, and plain names by one pattern, with the same results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.on_machine import tree_ops
from remote.sync import manifest


def list_there(root: Path, digest: str) -> dict[str, Any]:
    """Run `list` as the machine does, and send a digest after the request."""
    request = json.dumps({"root": str(root), "compare": True})
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tree_ops.__file__), "list"],
        input=f"{request}\n{digest}", capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.partition(tree_ops.ANSWER_MARK)[2])
    return answer


def test_only_a_tree_that_differs_is_listed(tmp_path: Path) -> None:
    """The digest of an equal tree is answered in a word; any other, and none, by the list."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "é").write_text("one")
    files = tree_ops.hash_tree(str(tmp_path))["files"]
    digest = tree_ops.tree_digest(files)

    equal = list_there(tmp_path, digest)
    assert (equal["equal"], equal["files"]) == (True, {})
    for other in ("", "0" * 64):
        assert list_there(tmp_path, other)["files"] == files
    (tmp_path / "a" / "é").write_text("two")
    assert list_there(tmp_path, digest)["files"]["a/é"] != files["a/é"]


@pytest.mark.parametrize(
    "path",
    ["a", "a/b.c-d", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", ".qft-partial/a", "a/.hidden",
     "a b", "a\n", "a\\b", "é", "x" * 255, "x" * 256, "a/" * 200 + "b", "a\x00", "COM1", "a.", ""],
)  # fmt: skip
def test_the_short_check_of_a_path_is_the_long_one(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A plain name is accepted by a pattern that accepts nothing the whole check refuses."""
    short = manifest.path_offence(path)
    monkeypatch.setattr(manifest, "PLAIN_PATH", re.compile(r"(?!)"))

    assert manifest.path_offence(path) == short
