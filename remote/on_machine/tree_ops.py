"""Runs ON THE MACHINE: lists, stages and commits trees so that every file is whole or absent.

Shipped alone, by content hash, and started over SSH: `python agent-<sha8>.py VERB`, request as JSON
on stdin, answer as JSON on stdout (`pack` answers with bytes). Standard library, Python >= 3.8. The
caller distrusts the answers; this side trusts the caller, but refuses a path that leaves its root.
"""
# Plain os calls, since pathlib costs seconds over 100,000 files:
# ruff: noqa: PTH100, PTH103, PTH105, PTH106, PTH108, PTH110, PTH112, PTH113, PTH114, PTH116
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
    from collections.abc import Iterable, Iterator

PARTIAL_DIR = ".qft-partial"
BLOCK = 1 << 20
MARK = "--qft-answer--\n"  # what comes before it is chatter of the login shell
SETTLED_NS = 2_000_000_000  # a file changed since is hashed again: a tick may hide a second change


def main(argv: list[str]) -> int:
    """Do one verb. Exit 0 with the answer, 3 with `{"error": …}` for what the caller can handle."""
    os.umask(0o077)  # what we make there is its user's alone
    verbs = {"manifest": manifest, "stage": stage, "commit": commit, "hashes": hashes}
    request = json.loads(sys.stdin.buffer.read() or b"{}")
    sys.stdout.write(MARK)
    sys.stdout.flush()
    try:
        if argv[1] == "pack":
            pack(request)
            return 0
        writes = argv[1] in ("stage", "commit")
        with alone_in(request["root"]) if writes else contextlib.nullcontext():
            answer = verbs[argv[1]](request)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer = {"error": "no-space" if full else "failed", "path": place_of(error)}
        answer.update(said=error.strerror or str(error), free=free_bytes(request["root"]))
    json.dump(answer, sys.stdout)
    return 3 if "error" in answer else 0


def manifest(request: dict[str, Any]) -> dict[str, Any]:
    """List what matches `include` below `root`; `left`: how much does not, and the first names."""
    root, cache, only = request["root"], request.get("cache", ""), request.get("only")
    if only is None:
        rows = list(walk(root, tuple(request.get("exclude", ())), follow=False))
    else:
        pairs = ((path, inside(root, path)) for path in only)
        rows = [(path, full, kind_of(full)) for path, full in pairs if os.path.lexists(full)]
    wanted = re.compile(request.get("include") or ".*", re.DOTALL)
    left = [row[0] for row in rows if not wanted.fullmatch(row[0])]
    found = listing([row for row in rows if wanted.fullmatch(row[0])], cache)
    return dict(found, exists=os.path.isdir(root), left=[len(left), left[:5]])


def scan(
    root: str, exclude: Iterable[str] = (), cache_path: str = "", *, follow_links: bool = False
) -> dict[str, Any]:
    """List every file below `root`: `{"files": {path: [size, sha256]}, "odd": [[path, kind]]}`.

    `odd` is neither file nor directory. With `follow_links` a link is what it points to (one back
    to a parent is odd). Hashes are remembered in `cache_path` by size, mtime and inode.
    """
    return listing(walk(root, tuple(exclude), follow=follow_links), cache_path)


def listing(rows: Iterable[tuple[str, str, str]], cache_path: str = "") -> dict[str, Any]:
    """Hash the rows (path, full path, kind) of a walk, or of files that were named one by one."""
    known = load_json(cache_path) if cache_path else {}
    files: dict[str, list[Any]] = {}
    odd: list[list[str]] = []
    fresh: dict[str, list[Any]] = {}
    now_ns = time.time_ns()
    for path, full, kind in rows:
        if kind != "file":
            odd.append([path, kind])
            continue
        try:
            info = os.stat(full)
            mark = [info.st_size, info.st_mtime_ns, info.st_ino]
            entry = known.get(path)
            settled = isinstance(entry, list) and len(entry) == 4 and entry[:3] == mark
            digest = str(entry[3]) if entry and settled else file_sha256(full)
        except FileNotFoundError:
            continue  # it vanished while we looked, as a rotated checkpoint does
        files[path] = [info.st_size, digest]
        if now_ns - info.st_mtime_ns > SETTLED_NS:
            fresh[path] = [*mark, digest]
    if cache_path and fresh != known:
        os.makedirs(os.path.dirname(cache_path) or ".", exist_ok=True)
        write_whole(cache_path, json.dumps(fresh).encode())
    return {"files": files, "odd": odd}


def walk(root: str, exclude: tuple[str, ...], *, follow: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (relative path, full path, kind) of all that is no directory, in sorted order."""
    pending = [("", root, frozenset([os.path.realpath(root)]))]
    while pending:
        prefix, folder, above = pending.pop()
        entries: list[os.DirEntry[str]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = sorted(os.scandir(folder), key=lambda item: item.name)
        for entry in entries:
            path = prefix + entry.name
            if entry.name == PARTIAL_DIR or excluded(path, exclude):
                continue
            if not entry.is_dir(follow_symlinks=follow):
                kind = kind_of(entry.path, follow=follow)
                if os.path.lexists(entry.path):  # else it went meanwhile, and has no kind
                    yield path, entry.path, kind
                continue
            real = os.path.realpath(entry.path)
            if real in above:
                yield path, entry.path, "loop"
            else:
                pending.append((path + "/", entry.path, above | {real}))


def kind_of(full: str, *, follow: bool = False) -> str:
    """Name what is at `full`: `file`, `link`, `dangling` or `special` (a directory too)."""
    if os.path.islink(full) and not (follow and os.path.exists(full)):
        return "dangling" if follow else "link"
    return "file" if os.path.isfile(full) else "special"


def excluded(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a pattern covers `path`: with `/` the whole path, without it the last name."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path if "/" in p else name, p.strip("/")) for p in patterns)


def stage(request: dict[str, Any]) -> dict[str, Any]:
    """Reserve room below `root` for every blob `[name, size]`; a disk too small gets it all back.

    Answers with the sha256 of every chunk that came earlier.
    """
    root, chunk = request["root"], request["chunk"]
    folder = os.path.join(root, PARTIAL_DIR)
    os.makedirs(folder, exist_ok=True)
    wanted = dict(request["blobs"])
    begun = {name: os.path.join(folder, name) for name in os.listdir(folder)}
    for name, path in list(begun.items()):
        if name not in wanted or os.path.getsize(path) > wanted[name]:
            os.unlink(begun.pop(name))
    there = sum(os.stat(path).st_blocks * 512 for path in begun.values())
    needed = sum(wanted.values()) + request.get("extra", 0)
    free = free_bytes(root) + there
    try:
        for name, size in wanted.items() if needed <= free else ():
            reserve(os.path.join(folder, name), size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needed = max(needed, free + 1)  # the disk gives less than it says it has free
    if needed > free:
        shutil.rmtree(folder)
        return {"error": "no-space", "needed": needed, "free": free_bytes(root)}
    if not request.get("hash", True):
        return {"begun": sorted(begun)}
    return {"begun": {name: chunk_hashes(path, chunk) for name, path in begun.items()}}


def reserve(path: str, size: int) -> None:
    """Create `path` or extend it to `size` bytes that the disk has really set aside."""
    with open(path, "ab") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def chunk_hashes(path: str, chunk: int) -> list[str]:
    """Hash a file chunk by chunk; one that is not there has no chunks."""
    found = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while data := file.read(chunk):
            found.append(hashlib.sha256(data).hexdigest())
    return found


def hashes(request: dict[str, Any]) -> dict[str, Any]:
    """Hash the files `paths` below `root` chunk by chunk, for a pull that resumes."""
    root, chunk = request["root"], request["chunk"]
    return {"hashes": {path: chunk_hashes(inside(root, path), chunk) for path in request["paths"]}}


def commit(request: dict[str, Any]) -> dict[str, Any]:
    """Put staged blobs in place: verify, fsync, rename; then remove what should go.

    `files` are `[blob, path, size, sha256]`, `bundles` are `[blob, [[path, size, sha256], …]]`.
    Answers `damaged` (other bytes) and `absent` paths (no blob, and not right at its place either).
    """
    root = request["root"]
    folder = os.path.join(root, PARTIAL_DIR)
    os.makedirs(folder, exist_ok=True)
    answer: dict[str, Any] = {"damaged": [], "absent": []}
    ready: list[tuple[str, str]] = []
    for name, path, size, digest in request["files"]:
        blob = os.path.join(folder, name)
        target = inside(root, path)
        if not os.path.exists(blob):
            if not is_right(target, size, digest):
                answer["absent"].append(path)
        elif is_right(blob, size, digest):
            ready.append((blob, target))
        else:
            os.unlink(blob)
            answer["damaged"].append(path)
    try:
        for name, index in request["bundles"]:
            unpack(root, os.path.join(folder, name), index, ready, answer)
    except OSError:
        clear(root)  # the room is worth more than what has come so far
        raise
    place(ready)
    for path in request.get("remove", ()):
        remove(root, path)
    if not answer["damaged"] + answer["absent"]:
        clear(root)
    return answer


def clear(root: str) -> None:
    """Remove the partial files of a transfer that is complete, and what older ones left behind."""
    shutil.rmtree(os.path.join(root, PARTIAL_DIR), ignore_errors=True)


def unpack(
    root: str, blob: str, index: list[Any], ready: list[tuple[str, str]], answer: dict[str, Any]
) -> None:
    """Cut a bundle (files one after another) into temporary files, checked, beside the blob."""
    if not os.path.exists(blob):
        answer["absent"] += [
            p for p, size, sha in index if not is_right(inside(root, p), size, sha)
        ]
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
            ready.append((part, inside(root, path)))
    os.unlink(blob)


def place(ready: list[tuple[str, str]]) -> None:
    """Make files durable, then visible: fsync all, rename all, fsync every directory touched."""
    from concurrent.futures import ThreadPoolExecutor  # half of the start-up time of this script

    with ThreadPoolExecutor(16) as pool:  # a journal commits many fsyncs at the price of one
        list(pool.map(sync, [blob for blob, _ in ready]))
        folders = set()
        for folder in sorted({os.path.dirname(target) for _, target in ready}):
            folders.update(make_folders(folder))
        for blob, target in ready:
            os.replace(blob, target)
        list(pool.map(sync, folders))


def make_folders(folder: str) -> list[str]:
    """Make a directory and what is missing above it; return all whose entries must be synced."""
    changed = [folder]
    while not os.path.isdir(changed[-1]):
        changed.append(os.path.dirname(changed[-1]))
    os.makedirs(folder, exist_ok=True)
    return changed


def remove(root: str, path: str) -> None:
    """Remove one file and the directories that it leaves empty."""
    target = inside(root, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    folder = os.path.dirname(target)
    while os.path.normpath(folder) != os.path.normpath(root) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)


def pack(request: dict[str, Any]) -> None:
    """Write the files `[path, size]` to stdout, one after another; a shorter one gets zeros."""
    out = sys.stdout.buffer
    for path, size in request["files"]:
        left = size
        full = inside(request["root"], path)
        with contextlib.suppress(FileNotFoundError), open(full, "rb") as file:
            while left and (data := file.read(min(left, BLOCK))):
                out.write(data)
                left -= len(data)
        for start in range(0, left, BLOCK):
            out.write(bytes(min(left - start, BLOCK)))
    out.flush()


@contextlib.contextmanager
def alone_in(root: str) -> Iterator[None]:
    """Let one process at a time write below `root`: the next one waits."""
    os.makedirs(root, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def inside(root: str, path: str) -> str:
    """Join `path` to `root`; refuse one that leaves it, also through a link on the way."""
    parts = path.split("/")
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EPERM, "illegal path", path)
    folder = root
    for part in parts[:-1]:
        folder = os.path.join(folder, part)
        if os.path.islink(folder):
            raise OSError(errno.ELOOP, "a link on the way", folder)
    return os.path.join(root, *parts)


def is_right(path: str, size: int, digest: str) -> bool:
    """Tell whether a regular file at `path` has these very bytes."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        info = os.lstat(path)
        return stat.S_ISREG(info.st_mode) and info.st_size == size and file_sha256(path) == digest
    return False


def file_sha256(path: str) -> str:
    """Hash a file without holding it in memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def free_bytes(path: str) -> int:
    """Bytes that an ordinary user may still write on the disk of `path` or its nearest parent."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def load_json(path: str) -> dict[str, Any]:
    """Read a cache; one that is absent or torn is empty."""
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
    sync(os.path.dirname(path) or ".")


def sync(path: str) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(error: OSError) -> str:
    """Name the file that an error is about: where a rename should lead, rather than from where."""
    return str(error.filename2 or error.filename or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
