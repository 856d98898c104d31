"""Sentiment pairs (`label,text`, 0 or 1) as rows for Phi-2."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

FORMAT = "sentiment"
SOURCE = "a CSV with the columns label (0 or 1) and text"
PUBLISHED = "none published"
TINY_MODEL = "phi"
BASE = {
    "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format and return the file."""
    path = directory / "sentiment.csv"
    things = ("film", "book", "meal", "trip", "song", "game", "walk", "play", "hotel", "phone")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        for number, thing in enumerate(things * 3):
            good = number % 2 == 0
            word = "wonderful, simply" if good else "a bore,<br />simply"
            writer.writerow([int(good), f"Visit {number}: this {thing} was {word} unforgettable"])
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
