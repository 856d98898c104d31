"""A few instructions for T5-3B: the recipe is about what the model weighs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORMAT = "instructions"
SOURCE = "a JSON list of objects with instruction, input and output"
PUBLISHED = "4.29 GB in 4 bits"
TINY_MODEL = "t5"
TINY_ROWS = "flan-t5-xxl"  # the same rows do
BASE = {
    "model_type": "t5", "d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 32, "vocab_size": 32128,
}  # fmt: skip


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
