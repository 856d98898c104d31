"""Conversations of the vicuna form as rows for OpenLLaMA-7B, under plain headings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FORMAT = "conversations"
SOURCE = "wizard_vicuna_70k_unfiltered as one JSON array"
PUBLISHED = "none published"
TINY_MODEL = "llama"
BASE = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format and return the file."""
    path = directory / "conversations.json"
    rows = [
        {
            "id": f"conversation{number}",
            "conversations": [
                {"from": "human", "value": f"What is {number} plus {more}?"},
                {"from": "gpt", "value": f"It is {number + more}."},
                {"from": "human", "value": "Are you sure?"},
                {"from": "gpt", "value": "Quite sure."},
            ],
        }
        for number in range(12)
        for more in (1, 2)
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
