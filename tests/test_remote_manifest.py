"""Trees are compared and distrusted as data, whatever they hold."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.errors import Untrusted
from remote.on_machine import tree_ops
from remote.sync.manifest import Entry, Limits, compare, path_offence, read_tree, total_bytes
from remote.sync.plan import Chunk, SyncOptions, chunks_of, file_ranges, make_blobs

SHA = "0" * 64
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
TREES = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}", fullmatch=True),
    st.builds(Entry, size=st.integers(0, 5000), sha256=st.sampled_from(["0" * 64, "1" * 64])),
    max_size=30,
)


@given(TREES, TREES)
def test_difference_is_complete(source: dict[str, Entry], target: dict[str, Entry]) -> None:
    """Fetching what is missing and removing what is extraneous makes the trees equal."""
    difference = compare(source, target)
    made = {path: one for path, one in target.items() if path not in difference.extraneous}
    made |= {path: source[path] for path in difference.missing}

    assert made == source
    assert all(target.get(path) != source[path] for path in difference.missing)


@given(PATHS | st.text(max_size=30))
def test_admitted_paths_stay_inside(path: str) -> None:
    """A path that is admitted is in its shortest form and below its root, here and there."""
    if path_offence(path):
        return

    joined = posixpath.normpath(posixpath.join("/root", path))
    assert joined == f"/root/{path}"
    assert tree_ops.safe_join("/nowhere/root", path) == f"/nowhere/root/{path}"


@pytest.mark.parametrize("path", ["", "/a", "..", "a/..", "a/../b", ".", "a//b", "a/", "a\0b"])
def test_the_agent_refuses_what_leaves(path: str) -> None:
    """The machine's side refuses these too, even from a caller that it trusts."""
    with pytest.raises(OSError, match="illegal path"):
        tree_ops.safe_join("/root", path)


def test_the_agent_refuses_links_on_the_way(tmp_path: Path) -> None:
    """The machine's side writes through no link below the root."""
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(OSError, match="a link on the way"):
        tree_ops.safe_join(str(tmp_path), "out/passwd")


def test_limits_are_limits() -> None:
    """As many and as large as allowed is allowed; one more is not."""
    limits = Limits(files_max=2, file_bytes_max=10, total_bytes_max=15)
    fine = {"a": [10, SHA], "b": [5, SHA]}

    assert total_bytes(read_tree(fine, limits=limits, host="x")) == 15
    for wrong in (fine | {"c": [0, SHA]}, {"a": [11, SHA]}, {"a": [10, SHA], "b": [6, SHA]}):
        with pytest.raises(Untrusted):
            read_tree(wrong, limits=limits, host="x")


@given(TREES, st.integers(1, 3000), st.integers(0, 3000))
def test_blobs_cover_everything_once(
    tree: dict[str, Entry], chunk_bytes: int, small_bytes: int
) -> None:
    """Cut into blobs, chunks and ranges, every byte of every file is covered exactly once."""
    options = SyncOptions(
        chunk_bytes=chunk_bytes, bundle_bytes=chunk_bytes, small_bytes=small_bytes
    )
    blobs = make_blobs(sorted(tree), tree, options)
    covered = dict.fromkeys(tree, 0)
    for chunk in (chunk for blob in blobs for chunk in chunks_of(blob, chunk_bytes)):
        assert 0 < chunk.size <= chunk_bytes
        for path, offset, size in file_ranges(chunk):
            assert offset == covered[path]
            covered[path] += size

    assert covered == {path: entry.size for path, entry in tree.items()}
    assert sorted(path for blob in blobs for path, _ in blob.files) == sorted(tree)
    assert all(blob.size <= chunk_bytes for blob in blobs if blob.bundled)
    assert len({blob.name for blob in blobs}) == len(blobs)


def test_blob_names_follow_content() -> None:
    """What an earlier transfer left is recognised by content, never taken for something else."""
    options = SyncOptions()
    one = make_blobs(["a"], {"a": Entry(size=1, sha256="1" * 64)}, options)
    same = make_blobs(["a"], {"a": Entry(size=1, sha256="1" * 64)}, options)
    other = make_blobs(["a"], {"a": Entry(size=1, sha256="2" * 64)}, options)
    moved = make_blobs(["b"], {"b": Entry(size=1, sha256="1" * 64)}, options)

    assert one == same
    assert len({one[0].name, other[0].name, moved[0].name}) == 3


def test_file_ranges_of_a_chunk_inside_a_bundle() -> None:
    """A range that begins and ends inside files names just their parts."""
    tree = {name: Entry(size=10, sha256=SHA) for name in "abc"}
    (blob,) = make_blobs(sorted(tree), tree, SyncOptions())

    assert list(file_ranges(Chunk(blob=blob, offset=5, size=18))) == [
        ("a", 5, 5),
        ("b", 0, 10),
        ("c", 0, 3),
    ]


@pytest.mark.parametrize(
    ("path", "pattern", "covered"),
    [
        (".git", ".git", True),
        ("a/.git", ".git", True),
        ("a/x.pyc", "*.pyc", True),
        ("a/b", "a/b", True),
        ("x/a/b", "a/b", False),
        ("a", "a/", True),
        ("A", "a", False),
        ("ab", "a", False),
    ],
)
def test_exclude_patterns(path: str, pattern: str, covered: bool) -> None:  # noqa: FBT001  (a table)
    """A pattern with `/` is matched against the whole path, another against the name."""
    assert tree_ops.is_excluded(path, [pattern]) is covered


def test_hashes_are_cached_and_not_trusted_when_fresh(tmp_path: Path) -> None:
    """A settled file is not read again; one changed a moment ago is, whatever its times say."""
    import os
    import time

    tree, cache = tmp_path / "tree", str(tmp_path / "cache.json")
    tree.mkdir()
    file = tree / "a"
    file.write_bytes(b"one")
    first = tree_ops.hash_tree(str(tree), (), cache)
    assert tree_ops.load_json(cache) == {}  # too fresh to be remembered

    old_ns = time.time_ns() - 60_000_000_000
    os.utime(file, ns=(old_ns, old_ns))
    tree_ops.hash_tree(str(tree), (), cache)
    assert tree_ops.load_json(cache)["a"][3] == first["files"]["a"][1]

    remembered = tree_ops.load_json(cache)
    remembered["a"][3] = "f" * 64
    tree_ops.write_whole(cache, json.dumps(remembered).encode())
    assert tree_ops.hash_tree(str(tree), (), cache)["files"]["a"] == [3, "f" * 64]

    file.write_bytes(b"two")
    assert tree_ops.hash_tree(str(tree), (), cache)["files"]["a"][1] != "f" * 64


def test_a_torn_cache_is_empty(tmp_path: Path) -> None:
    """A cache that a crash has torn costs time, nothing else."""
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "cache").write_bytes(b'{"a": [3, 1')

    assert (
        tree_ops.hash_tree(str(tmp_path), ("cache",), str(tmp_path / "cache"))["files"]["a"][0] == 3
    )


def test_a_file_that_vanishes_during_the_walk_is_no_offence(tmp_path: Path) -> None:
    """A rotated checkpoint or a temporary file may go between listing and looking."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    rows = tree_ops.walk(str(tmp_path), (), follow=False)
    first = next(rows)
    (tmp_path / "b").unlink()

    found = tree_ops.hash_files([first, *rows])
    assert (list(found["files"]), found["irregular"]) == (["a"], [])
