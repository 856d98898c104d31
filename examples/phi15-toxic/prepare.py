"""Jigsaw Toxic Comment `train.csv` by the published selection rule, as rows for Phi-1.5."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

FORMAT = "jigsaw"
SOURCE = "train.csv of the Jigsaw Toxic Comment Classification Challenge"
PUBLISHED = "none published"
TINY_MODEL = "phi"
BASE = {
    "model_type": "phi", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format and return the file."""
    path = directory / "jigsaw.csv"
    labels = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
    sets = (
        (),
        ("toxic",),
        (),
        ("toxic", "obscene"),
        (),
        ("toxic", "insult"),
        (),
        ("toxic", "threat"),
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "comment_text", *labels])
        for number in range(48):
            chosen = sets[number % len(sets)]
            mood = "rubbish" if chosen else "fine work"
            text = f'"Edit {number}\n\nThis page is {mood}, ""as they say""'
            writer.writerow([f"{number:016x}", text, *(int(label in chosen) for label in labels)])
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
