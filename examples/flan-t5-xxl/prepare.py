"""Instruction, input and output as rows for FLAN-T5-XXL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FORMAT = "instructions"
SOURCE = "a JSON list of objects with instruction, input and output"
PUBLISHED = "none published"
TINY_MODEL = "flan-t5"
BASE = {
    "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format and return the file."""
    path = directory / "instructions.json"
    rows = [
        {
            "instruction": f"Count from {number} to {number + 2}.",
            "input": "" if number % 2 else "In words or digits.",
            "output": f"{number}, {number + 1}, {number + 2}",
        }
        for number in range(30)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
