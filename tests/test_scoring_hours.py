"""The hours of scoring are those of its kind: what is read, generated, run, and how many rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commands.runs.planning.row_lengths import RowLengths
from commands.runs.planning.scoring_hours import (
    ScoringWork,
    generated_tokens,
    seconds_of_scoring,
)
from trainer.config import TrainerConfig
from trainer.device.shapes import read_shape
from trainer.estimate.gpus import GPUS
from trainer.schedule import Share

LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}  # fmt: skip
LENGTHS = RowLengths(
    shares=(Share(rows=1000),), mean_tokens=300, longest_tokens=400, target_tokens=40,
    longest_target=60, eval_rows=2000, eval_tokens=300, answer_tokens=60,
)  # fmt: skip
PAIRS = {"prompt": "{a}", "completion": "{b}"}


def seconds(table: Any, *, before: bool = True, data: Any = None, **more: Any) -> float:
    """The seconds that scoring by a table takes once on a T4."""
    config = {
        "model": {"id": "m"},
        "data": {"train": "a.jsonl", "eval": "b.jsonl", **(data or PAIRS)},
        **({} if table is None else {"eval": table}),
    }
    work = ScoringWork(
        config=TrainerConfig.model_validate(config), shape=read_shape(LLAMA), gpu=GPUS["T4"]
    )
    return seconds_of_scoring(work, replace(LENGTHS, **more), before=before)


def test_nothing_is_counted_where_nothing_is_scored() -> None:
    """`eval: none` costs no second, nor does a run without held-out rows."""
    assert seconds("none") == 0.0
    assert seconds({"kind": "loss"}, eval_rows=0) == 0.0


def test_without_a_table_the_kind_of_the_data_is_counted() -> None:
    """Unasked, pairs cost what `text` costs, conversations `chat`, and texts the loss of 1000."""
    assert seconds(None) == seconds({"kind": "text"})
    assert seconds(None, data={"messages": "m"}) == seconds(
        {"kind": "chat"}, data={"messages": "m"}
    )
    texts = seconds(None, data={"text": "t"})
    assert texts == seconds({"kind": "loss", "rows": 1000}, data={"text": "t"})


def test_a_bound_on_rows_bounds_the_hours() -> None:
    """Half of the rows take about half of the time, whatever the kind."""
    still = {"forgetting": False}
    for table in (
        {"kind": "loss"},
        {"kind": "text"},
        {"kind": "label", "labels": ["a", "b"]},
        {"kind": "choice", "options": ["a", "b"]},
    ):
        some, most = (seconds({**table, **still, "rows": rows}) for rows in (128, 256))
        assert most / some == pytest.approx(2, rel=0.05)


def test_what_a_kind_generates_is_counted() -> None:
    """Generating costs more than reading; more options, shots and programs cost more, too."""
    rows = {"rows": 256, "forgetting": False}
    loss = seconds({"kind": "loss", **rows})
    labels = seconds({"kind": "label", "labels": ["a", "b"], **rows})
    text = seconds({"kind": "text", "tokens_max": 512, **rows})
    two, many = (
        seconds({"kind": "choice", "options": list("abcdefgh"[:count]), **rows}) for count in (2, 8)
    )
    code = seconds({"kind": "code", "tokens_max": 512, **rows})

    assert loss < labels < text
    assert loss < two < many
    assert text < code
    assert seconds({"kind": "loss", "shots": 2, **rows}) > 2.5 * loss
    assert seconds({"kind": "loss", "shots": 2, **rows}, before=False) == loss
    assert seconds({"kind": "loss", "rows": 256}) > loss  # the general questions, on a card


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"kind": "loss"}, 0),
        ({"kind": "label", "labels": ["a"]}, 122),
        ({"kind": "text"}, 62),
        ({"kind": "text", "tokens_max": 9}, 9),
        ({"kind": "code"}, 120),
        ({"kind": "choice", "options": "o"}, 0),
    ],
)
def test_the_tokens_behind_a_prompt_follow_from_the_table(
    table: dict[str, Any], expected: int
) -> None:
    """They are those that the trainer generates at most."""
    config = {"model": {"id": "m"}, "data": {"train": "a", "eval": "b", **PAIRS}, "eval": table}
    found = TrainerConfig.model_validate(config).scored

    assert found is not None
    assert generated_tokens(found, LENGTHS) == expected
