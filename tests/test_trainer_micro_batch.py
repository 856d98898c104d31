"""`micro_batch: auto` fits the card, and a number is taken as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import tiny

from trainer.config import TrainerConfig
from trainer.data.codec import Example
from trainer.estimate.gpus import GPUS
from trainer.estimate.micro_batch import choose_micro_batch

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def config(micro_batch: Any) -> TrainerConfig:
    """Return a config with this micro-batch of a batch of 16."""
    raw = tiny.make_config(
        Path("m"),
        Path("t"),
        method={"kind": "qlora"},
        train={"micro_batch": micro_batch, "batch_size": 16, "gradient_checkpointing": True},
    )
    return TrainerConfig.model_validate(raw)


def rows(length: int) -> list[Example]:
    """Return one row of this length with an answer of four tokens."""
    return [Example((5,) * length, (-100,) * (length - 4) + (5,) * 4, "", "", 1, length - 4)]


def test_longer_rows_go_in_smaller_portions() -> None:
    """On a T4 a 7B model takes more short rows than long ones at once, and at least one of 512."""
    sizes = [
        choose_micro_batch(config("auto"), LLAMA_7B, rows(length), gpu=GPUS["T4"]).size
        for length in (64, 512, 2048, 16384)
    ]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2] >= 1
    assert 1 <= sizes[1] <= 16


@pytest.mark.parametrize(("wanted", "size"), [(1, 1), (5, 5), (40, 16)])
def test_a_configured_micro_batch_is_taken(wanted: int, size: int) -> None:
    """A number is kept, up to the batch itself, whatever the card."""
    assert choose_micro_batch(config(wanted), LLAMA_7B, rows(64), gpu=GPUS["T4"]).size == size


def test_a_cpu_takes_whole_batches() -> None:
    """Without a card the whole batch goes at once."""
    assert choose_micro_batch(config("auto"), LLAMA_7B, rows(64), gpu=None).size == 16


def test_an_unknown_architecture_is_tried_whole() -> None:
    """If nothing can be foretold, whole batches are tried, and the loop halves them if it must."""
    found = choose_micro_batch(config("auto"), {"model_type": "odd"}, rows(64), gpu=GPUS["T4"])

    assert found.size == 16
    assert "until memory runs out" in found.reason
