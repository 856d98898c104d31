"""Trees of files for tests of sync: made from a seed, and read back whole."""

from __future__ import annotations

import random
from pathlib import Path


def make_tree(root: Path, *, seed: int = 0) -> Path:
    """Write files of all the sizes that travel differently; the same bytes for the same seed."""
    noise = random.Random(seed)  # noqa: S311  (test data)
    sizes = {"empty": 0, "one": 1, "a/small": 4096, "a/b/c/deep": 17, "big": 3_000_001}
    for name, size in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(size))
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    """Read every file below a directory."""
    files = (path for path in root.rglob("*") if not path.is_dir())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
