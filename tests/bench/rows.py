"""The rows of the training benchmark: three shapes of data made from the quickstart's tweets.

No network is asked, and every tool trains the very same tokens: qft's own code reads the rows, as
it does for a training, and `python -m bench.rows` writes what it made of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
HEADING = "Here are some tweets to airlines and others.\n\n"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape of data: how rows are made, how many an epoch has, and in what batches."""

    name: str
    title: str
    rows: int
    held_out: int
    batch_size: int
    data: Mapping[str, Any]  # the table `data` of run.yaml, without the files
    make: Callable[[Sequence[Row], int], list[Row]]  # from tweets, so many rows
    max_length: int = 512


def tweets(source: Sequence[Row], count: int) -> list[Row]:
    """Return tweets as they are: short prompts, answers of a word."""
    return list(source[:count])


def threads(source: Sequence[Row], count: int) -> list[Row]:
    """Return prompts of one to four tweets and one that is asked about: answers of a word."""
    made: list[Row] = []
    at = 0
    for number in range(count):
        size = 1 + number * 7 % 4
        part = [source[(at + place) % len(source)] for place in range(size + 1)]
        at += size + 1
        lines = "".join(f"- {one['text']} ({one['label']})\n" for one in part[:-1])
        made.append({"text": f"{HEADING}{lines}\n- {part[-1]['text']}", "label": part[-1]["label"]})
    return made


def chats(source: Sequence[Row], count: int) -> list[Row]:
    """Return conversations of one to three questions; every answer is learnt."""
    made: list[Row] = []
    at = 0
    for number in range(count):
        messages = []
        for _turn in range(1 + number * 5 % 3):
            one = source[at % len(source)]
            at += 1
            asks = f"What does the writer of this tweet feel? {one['text']}"
            words = " ".join(one["text"].split()[:8])
            answer = f"The feeling is {one['label']}. It shows in the words: {words}"
            messages += [
                {"role": "user", "content": asks},
                {"role": "assistant", "content": answer},
            ]
        made.append({"messages": messages})
    return made


PROMPTED = {"prompt": "{text}\nSentiment:", "completion": " {label}"}
SHAPES = (
    Shape(
        name="tweets", title="short prompts, answers of a word",
        rows=72, held_out=48, batch_size=8, data=PROMPTED, make=tweets,
    ),
    Shape(
        name="long", title="long prompts, answers of a word",
        rows=20, held_out=16, batch_size=2, data=PROMPTED, make=threads,
    ),
    Shape(
        name="chats", title="conversations, every answer learnt",
        rows=18, held_out=12, batch_size=2, data={"messages": "messages"}, make=chats,
    ),
)  # fmt: skip


def write_rows(shape: Shape, quickstart: Path, folder: Path, *, rows: int) -> None:
    """Write `train.jsonl` and `held_out.jsonl` of a shape to `folder`."""
    for name, source, count in (
        ("train", "train", rows),
        ("held_out", "eval", shape.held_out),
    ):
        lines = (quickstart / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
        made = shape.make([json.loads(line) for line in lines], count)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write tokens and labels of a run's rows: `CONFIG.json ROWS.jsonl OUT.jsonl`.

    The rows of `data.train` are also written in the order in which qft takes them, to
    `ordered-OUT.jsonl` beside it.
    """
    from trainer import model as models
    from trainer.config import load_config
    from trainer.data.examples import load_examples
    from trainer.schedule import make_schedule

    config_path, rows, out = map(Path, arguments)
    config = load_config(config_path)
    tokenizer = models.load_tokenizer(models.find_source(config.model, config_path.parent))
    found = load_examples(config.data, rows, tokenizer, max_length=config.train.max_length).items
    lines = [json.dumps({"input_ids": one.input_ids, "labels": one.labels}) + "\n" for one in found]
    out.write_text("".join(lines), encoding="utf-8")
    schedule = make_schedule(config.train, [len(one.input_ids) for one in found])
    order = [row for step in range(schedule.steps) for row in schedule.batch(step)]
    ordered = out.with_name(f"ordered-{out.name}")
    ordered.write_text("".join(lines[row] for row in order), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
