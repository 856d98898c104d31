"""Whole-file operations that run on either side: lists, reserves, verifies and renames files.

A library on the laptop; for the machine this one file is shipped by content hash and started over
SSH, `python tree_ops-<sha8>.py VERB`: request as one line of JSON on stdin, answer as JSON on
stdout (`pack` answers with bytes, `serve` takes many requests). Standard library only, Python 3.8
or later. The caller does not trust the answers; this side trusts the caller, but refuses a path
that leaves its root.

Long because it is shipped as one file, which needs nothing beside it: lists and hashes as well as
reservations and commits. `python -I`, which keeps everybody else's modules out of the script, does
not look beside it either; two files would need an archive, which Python compiles anew at each
start, or a program that joins them into a third that is in no repository.
"""
# Plain os calls, since pathlib costs seconds over 100,000 files:
# ruff: noqa: PTH100, PTH103, PTH105, PTH106, PTH108, PTH110, PTH112, PTH114, PTH116
# ruff: noqa: PTH118, PTH120, PTH123, PTH202, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

PARTIAL_DIR = ".qft-partial"
BLOCK_BYTES = 1 << 20
FSYNC_BYTES = 32 << 20
PREFIXES_MAX = 64  # files that are open at once
ANSWER_MARK = "--qft-answer--\n"  # what comes before it was printed by the login shell
SETTLED_NS = 2_000_000_000  # a file changed since is hashed again: a tick may hide a second change


def main(argv: list[str]) -> int:
    """Run one verb, or serve many. Exit 3 after `{"error": …}`, which the caller handles."""
    os.umask(0o077)  # what we make there is its user's alone
    if argv[1] == "serve":
        return serve()
    request = json.loads(sys.stdin.buffer.readline() or b"{}")
    sys.stdout.write(ANSWER_MARK)
    sys.stdout.flush()
    if argv[1] == "pack":
        try:
            pack_files(request)
        except OSError as error:
            json.dump(explain(error, request), sys.stdout)
            return 3
        return 0
    answer = run_verb(argv[1], request)
    json.dump(answer, sys.stdout)
    return 3 if "error" in answer else 0


def serve() -> int:
    """Answer each line `[verb, request]` of stdin by a line, until it ends.

    `received` has no answer: it hashes what has come of a blob while the rest is on its way, so
    that `commit` has little left to do.
    """
    sys.stdout.write(ANSWER_MARK)
    sys.stdout.flush()
    hashes = PrefixHashes()
    for line in iter(sys.stdin.buffer.readline, b""):
        verb, request = json.loads(line)
        if verb == "received":
            with contextlib.suppress(OSError):  # `commit` meets it again
                hashes.extend(
                    os.path.join(request["root"], PARTIAL_DIR, request["blob"]), request["bytes"]
                )
            continue
        sys.stdout.write(json.dumps(run_verb(verb, request, hashes)) + "\n")
        sys.stdout.flush()
    return 0


def run_verb(
    verb: str, request: dict[str, Any], hashes: PrefixHashes | None = None
) -> dict[str, Any]:
    """Return the answer to one request, an `error` included."""
    verbs = {"list": list_files, "reserve": reserve_space, "hash": hash_chunks}
    try:
        if verb == "commit":
            with exclusive_lock(request["root"]):
                return commit(request, hashes or PrefixHashes())
        with exclusive_lock(request["root"]) if verb == "reserve" else contextlib.nullcontext():
            answer = verbs[verb](request)
        if verb == "list" and request.get("compare"):
            # The caller hashes its own files meanwhile, and sends the digest of them when it can.
            return shorten_if_equal(answer, sys.stdin.buffer.readline().decode().strip())
    except OSError as error:
        return explain(error, request)
    return answer


def explain(error: OSError, request: dict[str, Any]) -> dict[str, Any]:
    """Describe an error in an answer."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return {
        "error": "no-space" if full else "failed",
        "path": error_path(error),
        "message": error.strerror or str(error),
        "free": free_disk_bytes(request["root"]),
    }


class PrefixHashes:
    """Hashes and fsyncs files from their beginning while later parts of them still arrive.

    Only what is still the same file at the end counts: each is kept open until then.
    """

    def __init__(self) -> None:
        self._begun: dict[str, tuple[Any, Any]] = {}
        """By path: the open file, read as far as it is hashed, and the hash."""
        self._errors: dict[str, OSError] = {}
        """An fsync reports an error once, so that it is kept for `finish`."""

    def extend(self, path: str, end: int) -> None:
        """Hash what is not hashed yet of the first `end` bytes; raises `OSError`, and again."""
        if path in self._errors:
            raise self._errors[path]
        if path not in self._begun:
            if len(self._begun) >= PREFIXES_MAX:  # the oldest is hashed anew by `finish`
                self._forget(next(iter(self._begun)))
            # Unbuffered: what is read ahead may not have arrived yet.
            self._begun[path] = open(path, "rb", buffering=0), hashlib.sha256()  # noqa: SIM115
        file, digest = self._begun[path]
        try:
            while (more := end - file.tell()) > 0 and (data := file.read(min(BLOCK_BYTES, more))):
                digest.update(data)
                if file.tell() % FSYNC_BYTES < len(data):  # the disk writes while the rest arrives
                    os.fsync(file.fileno())
        except OSError as error:
            self._errors[path] = error
            self._forget(path)
            raise

    def finish(self, path: str) -> str:
        """Hash the rest of a file; return the sha256 of all of it."""
        if path in self._begun:
            same = os.path.samestat(os.fstat(self._begun[path][0].fileno()), os.stat(path))
            if not same:  # another transfer has replaced it
                self._forget(path)
        self.extend(path, sys.maxsize)
        found: str = self._forget(path).hexdigest()
        return found

    def close(self) -> None:
        """Close the files that are still open."""
        for path in list(self._begun):
            self._forget(path)

    def _forget(self, path: str) -> Any:
        """Close a file; return the hash so far."""
        file, digest = self._begun.pop(path)
        file.close()
        return digest


def list_files(request: dict[str, Any]) -> dict[str, Any]:
    """List the files below `root` that match `include`; `unmatched`: [count, names] of the rest."""
    root, cache, only = request["root"], request.get("cache", ""), request.get("only")
    if only is None:
        rows = list(walk(root, tuple(request.get("exclude", ())), follow=False))
    else:
        checked: set[str] = set()
        pairs = ((path, safe_join(root, path, checked)) for path in only)
        rows = [row for row in ((path, full, file_kind(full)) for path, full in pairs) if row[2]]
    wanted = re.compile(request.get("include") or ".*", re.DOTALL)
    unmatched = [row[0] for row in rows if not wanted.fullmatch(row[0])]
    found = hash_files([row for row in rows if wanted.fullmatch(row[0])], cache)
    return dict(found, exists=os.path.isdir(root), unmatched=[len(unmatched), unmatched[:5]])


def shorten_if_equal(answer: dict[str, Any], digest: str) -> dict[str, Any]:
    """Replace the files of a listing by `equal` if this is their `tree_digest`."""
    return dict(answer, files={}, equal=True) if digest == tree_digest(answer["files"]) else answer


def tree_digest(files: dict[str, list[Any]]) -> str:
    """Return a sha256 of `{path: [size, sha256]}` that is equal for equal trees."""
    rows = [[path, *files[path]] for path in sorted(files)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def hash_tree(
    root: str, exclude: Iterable[str] = (), cache_path: str = "", *, follow_links: bool = False
) -> dict[str, Any]:
    """Hash all below `root`: `{"files": {path: [size, sha256]}, "irregular": [[path, kind]]}`.

    `irregular` is neither file nor directory. With `follow_links` a link is what it points to (one
    back to a parent is irregular). Hashes are cached in `cache_path` by size, mtime and inode.
    """
    return hash_files(walk(root, tuple(exclude), follow=follow_links), cache_path)


def hash_files(rows: Iterable[tuple[str, str, str]], cache_path: str = "") -> dict[str, Any]:
    """Hash the rows (path, full path, kind) of `walk`, or of files that were named one by one."""
    cached = load_json(cache_path) if cache_path else {}
    files: dict[str, list[Any]] = {}
    irregular: list[list[str]] = []
    fresh: dict[str, list[Any]] = {}
    now_ns = time.time_ns()
    for path, full, kind in rows:
        if kind != "file":
            irregular.append([path, kind])
            continue
        try:
            info = os.stat(full)
            mark = [info.st_size, info.st_mtime_ns, info.st_ino]
            entry = cached.get(path)
            settled = isinstance(entry, list) and len(entry) == 4 and entry[:3] == mark
            digest = str(entry[3]) if entry and settled else file_sha256(full)
        except FileNotFoundError:
            continue  # it vanished while we looked, as a rotated checkpoint does
        files[path] = [info.st_size, digest]
        if now_ns - info.st_mtime_ns > SETTLED_NS:
            fresh[path] = [*mark, digest]
    if cache_path and fresh != cached:
        os.makedirs(os.path.dirname(cache_path) or ".", exist_ok=True)
        write_whole(cache_path, json.dumps(fresh).encode())
    return {"files": files, "irregular": irregular}


def walk(root: str, exclude: tuple[str, ...], *, follow: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (relative path, full path, kind) of all that is no directory, in sorted order."""
    pending = [("", root, frozenset([os.path.realpath(root)]))]
    while pending:
        prefix, folder, above = pending.pop()
        entries: list[os.DirEntry[str]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile
            entries = sorted(os.scandir(folder), key=lambda item: item.name)
        for entry in entries:
            path = prefix + entry.name
            if entry.name == PARTIAL_DIR or is_excluded(path, exclude):
                continue
            if entry.is_file(follow_symlinks=False):  # asks the disk nothing, for 100,000 files
                yield path, entry.path, "file"
                continue
            if not entry.is_dir(follow_symlinks=follow):
                if kind := file_kind(entry.path, follow=follow):  # else it went meanwhile
                    yield path, entry.path, kind
                continue
            real = os.path.realpath(entry.path)
            if real in above:
                yield path, entry.path, "loop"
            else:
                pending.append((path + "/", entry.path, above | {real}))


def file_kind(full: str, *, follow: bool = False) -> str:
    """Return what is at `full`: `file`, `link`, `dangling`, `special` (a directory too), or ``."""
    try:
        mode = os.lstat(full).st_mode
        if follow and stat.S_ISLNK(mode):
            mode = os.stat(full).st_mode if os.path.exists(full) else 0
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if not mode:
        return "dangling"
    return "link" if stat.S_ISLNK(mode) else "file" if stat.S_ISREG(mode) else "special"


def is_excluded(path: str, patterns: Collection[str]) -> bool:
    """Whether a pattern covers `path`: with `/` the whole path, without it the last name."""
    if not patterns:
        return False
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path if "/" in p else name, p.strip("/")) for p in patterns)


def reserve_space(request: dict[str, Any]) -> dict[str, Any]:
    """Reserve disk space below `root` for every blob `[name, size]`, or none if it is too small.

    Answers with the sha256 of every chunk of the partial files that an earlier transfer left.
    """
    root, chunk = request["root"], request["chunk"]
    folder = os.path.join(root, PARTIAL_DIR)
    os.makedirs(folder, exist_ok=True)
    wanted = dict(request["blobs"])
    partial = {name: os.path.join(folder, name) for name in os.listdir(folder)}
    for name, path in list(partial.items()):
        if name not in wanted or os.path.getsize(path) > wanted[name]:
            os.unlink(partial.pop(name))
    allocated = sum(os.stat(path).st_blocks * 512 for path in partial.values())
    needed = sum(wanted.values()) + request.get("extra", 0)
    free = free_disk_bytes(root) + allocated
    try:
        for name, size in wanted.items() if needed <= free else ():
            allocate(os.path.join(folder, name), size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needed = max(needed, free + 1)  # the disk gives less than it says it has free
    if needed > free:
        shutil.rmtree(folder)
        return {"error": "no-space", "needed": needed, "free": free_disk_bytes(root)}
    if not request.get("hash", True):
        return {"partial": sorted(partial)}
    return {"partial": {name: chunk_hashes(path, chunk) for name, path in partial.items()}}


def allocate(path: str, size: int) -> None:
    """Create `path` or extend it to `size` bytes that the disk has really reserved."""
    with open(path, "ab") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def chunk_hashes(path: str, chunk: int) -> list[str]:
    """Hash a file chunk by chunk; one that does not exist has no chunks."""
    found = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # no chunks then
        while data := file.read(chunk):
            found.append(hashlib.sha256(data).hexdigest())
    return found


def hash_chunks(request: dict[str, Any]) -> dict[str, Any]:
    """Hash the files `paths` below `root` chunk by chunk, for a pull that resumes."""
    root, chunk = request["root"], request["chunk"]
    paths = {path: safe_join(root, path) for path in request["paths"]}
    return {"hashes": {path: chunk_hashes(full, chunk) for path, full in paths.items()}}


def commit(request: dict[str, Any], hashes: PrefixHashes) -> dict[str, Any]:
    """Verify, fsync and rename blobs that have arrived; then delete the paths in `remove`.

    `files` are `[blob, path, size, sha256]`, `bundles` are `[blob, [[path, size, sha256], …]]`.
    Answers `damaged` (other bytes) and `absent` paths (no blob, and not right at its place either).
    """
    root = request["root"]
    folder = os.path.join(root, PARTIAL_DIR)
    os.makedirs(folder, exist_ok=True)
    answer: dict[str, Any] = {"damaged": [], "absent": []}
    ready: list[tuple[str, str]] = []
    rows = [(os.path.join(folder, name), *row) for name, *row in request["files"]]
    with fsynced_meanwhile([blob for blob, *_ in rows if os.path.exists(blob)]):
        for blob, path, size, digest in rows:
            target = safe_join(root, path)
            if not os.path.exists(blob):
                if not has_content(target, size, digest):
                    answer["absent"].append(path)
            elif has_content(blob, size, digest, hashes):
                ready.append((blob, target))
            else:
                os.unlink(blob)
                answer["damaged"].append(path)
    try:
        for name, index in request["bundles"]:
            unpack_bundle(root, os.path.join(folder, name), index, ready, answer)
    except OSError:
        remove_partial_dir(root)  # the space is worth more than what has arrived so far
        raise
    rename_into_place(ready)
    for path in request.get("remove", ()):
        remove_file(root, path)
    if not answer["damaged"] + answer["absent"]:
        remove_partial_dir(root)
    return answer


def remove_partial_dir(root: str) -> None:
    """Delete the partial files below `root`: of a transfer that is over, and of older ones."""
    shutil.rmtree(os.path.join(root, PARTIAL_DIR), ignore_errors=True)


def unpack_bundle(
    root: str, blob: str, index: list[Any], ready: list[tuple[str, str]], answer: dict[str, Any]
) -> None:
    """Split a bundle (files one after another) into verified temporary files beside the blob."""
    if not os.path.exists(blob):
        answer["absent"] += [p for p, *row in index if not has_content(safe_join(root, p), *row)]
        return
    with open(blob, "rb") as file:
        for number, (path, size, digest) in enumerate(index):
            data = file.read(size)
            if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                answer["damaged"].append(path)
                continue
            part = f"{blob}.{number}"
            with open(part, "wb") as out:
                out.write(data)
            ready.append((part, safe_join(root, path)))
    os.unlink(blob)


@contextlib.contextmanager
def fsynced_meanwhile(paths: list[str]) -> Iterator[None]:
    """Fsync files while the block reads them; both ends are waited for, and an error is raised."""
    from concurrent.futures import ThreadPoolExecutor  # as below

    def fsync_if_there(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the block found it damaged and removed it
            fsync(path)

    with ThreadPoolExecutor(4) as pool:
        fsyncs = [pool.submit(fsync_if_there, path) for path in paths]
        yield
        for one in fsyncs:
            one.result()


def rename_into_place(ready: list[tuple[str, str]]) -> None:
    """Fsync all files, rename all, fsync every directory touched: durable first, then visible."""
    from concurrent.futures import ThreadPoolExecutor  # half of the start-up time of this script

    with ThreadPoolExecutor(16) as pool:  # a journal commits many fsyncs at the price of one
        list(pool.map(fsync, [blob for blob, _ in ready]))
        folders = set()
        for folder in sorted({os.path.dirname(target) for _, target in ready}):
            folders.update(make_folders(folder))
        for blob, target in ready:
            os.replace(blob, target)
        list(pool.map(fsync, folders))


def make_folders(folder: str) -> list[str]:
    """Create a directory and its parents; return all directories whose entries must be fsynced."""
    changed = [folder]
    while not os.path.isdir(changed[-1]):
        changed.append(os.path.dirname(changed[-1]))
    os.makedirs(folder, exist_ok=True)
    return changed


def remove_file(root: str, path: str) -> None:
    """Delete one file and the directories that it leaves empty."""
    target = safe_join(root, path)
    with contextlib.suppress(FileNotFoundError):  # gone is the goal
        os.unlink(target)
    folder = os.path.dirname(target)
    while os.path.normpath(folder) != os.path.normpath(root) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)


def pack_files(request: dict[str, Any]) -> None:
    """Write the files `[path, size]` to stdout, one after another; pad a shorter one with zeros."""
    out = sys.stdout.buffer
    for path, size in request["files"]:
        missing = size
        full = safe_join(request["root"], path)
        with contextlib.suppress(FileNotFoundError), open(full, "rb") as file:  # padded below
            while missing and (data := file.read(min(missing, BLOCK_BYTES))):
                out.write(data)
                missing -= len(data)
        for start in range(0, missing, BLOCK_BYTES):
            out.write(bytes(min(missing - start, BLOCK_BYTES)))
    out.flush()


@contextlib.contextmanager
def exclusive_lock(root: str) -> Iterator[None]:
    """Lock `root` for writing: one process at a time, the next one waits."""
    os.makedirs(root, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def safe_join(root: str, path: str, checked: set[str] | None = None) -> str:
    """Join `path` to `root`; raise `OSError` if it leaves it, also through a link on the way.

    `checked` collects the folders that were looked at, so that many paths ask for each only once.
    """
    parts = path.split("/")
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EPERM, "illegal path", path)
    checked = set() if checked is None else checked
    full, above = os.path.join(root, *parts), os.path.join(root, *parts[:-1])
    if above not in checked:
        folder = root
        for part in parts[:-1]:
            folder = os.path.join(folder, part)
            if os.path.islink(folder):
                raise OSError(errno.ELOOP, "a link on the way", folder)
        checked.add(above)
    return full


def has_content(path: str, size: int, digest: str, hashes: PrefixHashes | None = None) -> bool:
    """Whether a regular file at `path` has this size and sha256; `hashes` may have begun it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no such file
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) and info.st_size == size:
            return (hashes or PrefixHashes()).finish(path) == digest
    return False


def file_sha256(path: str) -> str:
    """Hash a file block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(BLOCK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def free_disk_bytes(path: str) -> int:
    """Return the bytes that an ordinary user may still write on the disk of `path`."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def load_json(path: str) -> dict[str, Any]:
    """Read a cache file; one that is absent or cut short is empty."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: str, data: bytes) -> None:
    """Replace `path` so that a crash leaves the old or the new content, never a part."""
    temp = f"{path}.{os.getpid()}.tmp"
    with open(temp, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
    fsync(os.path.dirname(path) or ".")


def fsync(path: str) -> None:
    """Fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def error_path(error: OSError) -> str:
    """Return the path that an error is about; of a rename the target."""
    return str(error.filename2 or error.filename or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
