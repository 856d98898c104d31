"""Modules under every name that Python or `qft` might import, each telling when it is executed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

OURS = ("cli", "commands", "infra", "remote", "trainer", "qft")
LIBRARIES = (
    *("torch", "transformers", "peft", "numpy", "yaml", "pydantic", "safetensors", "accelerate"),
    *("bitsandbytes", "huggingface_hub", "tokenizers", "typer", "click", "rich", "paramiko"),
    *("fabric", "invoke", "cryptography", "psutil", "asyncssh", "azure", "jinja2", "packaging"),
    *("regex", "requests", "httpx", "tqdm", "filelock", "sentencepiece", "pyarrow", "pandas"),
    *("sitecustomize", "usercustomize", "conftest", "setup", "__init__", "__main__"),
)
NAMES = (*OURS, *LIBRARIES, *sorted(sys.stdlib_module_names))


def plant(folder: Path, marker: Path, names: Iterable[str] = NAMES) -> None:
    """Put a module of each name into `folder`, and a `.pth` file; all write to `marker`."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"open({str(marker)!r}, 'a').write(__file__ + '\\n')\n"
    for name in names:
        (folder / f"{name}.py").write_text(code)
    (folder / "planted.pth").write_text(f"import os; {code}".replace("__file__", "'pth'"))
