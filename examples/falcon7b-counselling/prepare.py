"""Counselling pairs (`Context`, `Response`) as rows for Falcon-7B, a question on one side only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FORMAT = "counselling"
SOURCE = "the JSON of Amod/mental_health_counseling_conversations"
PUBLISHED = "none published"
TINY_MODEL = "falcon"
BASE = {
    "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
    "num_attention_heads": 71, "vocab_size": 65024, "multi_query": True,
}  # fmt: skip


def write_tiny(directory: Path) -> Path:
    """Write a handful of rows in the original format and return the file."""
    path = directory / "pairs.jsonl"
    topics = ("sleep", "work", "exams", "moving", "family", "time", "sports", "money", "travel")
    rows = [
        {"Context": f"I worry about {topic}. What can I do?", "Response": f"{start} about {topic}."}
        for topic in topics
        for start in ("Tell me more", "Let us talk calmly", "Write down what you think")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    shared = Path(__file__).parents[1] / "recipes.py"
    command = [sys.executable, str(shared), Path(__file__).parent.name, *sys.argv[1:]]
    raise SystemExit(subprocess.call(command))
