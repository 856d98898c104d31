"""Proves on real tweets and a real model in NF4 what the methods promise about quality.

A NOLA file is small and as good as LoRA's: forty steps, three times. One QDyLoRA run is as good at
every rank as a run at that rank with as many steps: five times ninety. With about three seconds a
step, half an hour on an idle core.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.rig import Rig, rig
from support.tiny import write_config

from trainer.adapters import methods
from trainer.adapters.dylora import DyLora
from trainer.config import load_config
from trainer.data.examples import load_examples
from trainer.model import find_source, load_tokenizer
from trainer.training.objective import mean_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
STEPS = 40
WHOLE = 90  # as in the quickstart
RANKS = (1, 8)


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    """Make the quickstart's model and rows, if they are not there yet."""
    subprocess.run([sys.executable, str(QUICKSTART / "prepare.py")], check=True)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, int]]:
    """Return held-out loss and bytes of the adapter of a LoRA run at each rank."""
    found = {}
    for rank in RANKS:
        made = trained(tmp_path_factory.mktemp("lora") / "run", kind="qlora", r=rank)
        found[rank] = loss_of(made), saved_bytes(made)
    return found


def trained(run_dir: Path, *, steps: int = STEPS, **method: Any) -> Rig:
    """Return the finished training of one method with the quickstart's other settings."""
    config = {
        "model": {"id": str(QUICKSTART / "model")},
        "method": {"quant": "nf4", "double_quant": True, "alpha": 16, **method},
        "data": {
            "train": str(QUICKSTART / "train.jsonl"),
            "eval": str(QUICKSTART / "eval.jsonl"),
            "prompt": "Tweet: {text}\nSentiment:",
            "completion": " {label}",
        },
        "train": {
            "steps": steps,
            "batch_size": 8,
            "lr": 3e-4,
            "max_length": 128,
            "gradient_checkpointing": False,
            "threads": 1,
        },
    }
    made = rig(write_config(run_dir, config))
    made.train(until=steps)
    methods.method_of(made.context.model).materialize()
    made.context.model.eval()
    return made


def held_out(made: Rig) -> Any:
    """Return the 150 held-out tweets."""
    config = load_config(made.run_dir / "config.json")
    tokenizer = load_tokenizer(find_source(config.model, made.run_dir))
    path = QUICKSTART / "eval.jsonl"
    return load_examples(config.data, path, tokenizer, max_length=128).items


def loss_of(made: Rig) -> float:
    """Return the mean loss on the held-out tweets, nats per target token."""
    return mean_loss(
        made.context.model,
        held_out(made),
        objective=made.context.objective,
        micro_batch=16,
    )


def saved_bytes(made: Rig) -> int:
    """Return the size of the adapter's own files, without PEFT's config and readme."""
    adapter = made.run_dir / "adapter"
    adapter.mkdir()
    methods.method_of(made.context.model).save(adapter)
    names = ("adapter_model.safetensors", "nola.safetensors", "nola.json")
    return sum(path.stat().st_size for path in adapter.iterdir() if path.name in names)


def test_nola_is_as_good_as_lora_in_a_file_a_twentieth_of_the_size(
    separate: dict[int, tuple[float, int]], tmp_path: Path
) -> None:
    """At the same learning rate the loss is no higher than at ranks 1 and 8 of LoRA."""
    made = trained(tmp_path / "run", kind="nola", r=8)
    loss, size = loss_of(made), saved_bytes(made)

    assert loss <= min(loss for loss, _ in separate.values())
    assert size * 20 < separate[8][1]
    assert size * 2 < separate[1][1]


def test_one_dylora_run_is_as_good_at_every_rank(tmp_path: Path) -> None:
    """The loss at ranks 1, 2, 4 and 8 is at most 5 % above that of a separate run at the rank."""
    alone = {
        rank: loss_of(trained(tmp_path / f"rank-{rank}", steps=WHOLE, kind="qlora", r=rank))
        for rank in (1, 2, 4, 8)
    }
    made = trained(tmp_path / "every-rank", steps=WHOLE, kind="qdylora", r=8)
    dylora = methods.method_of(made.context.model)
    assert isinstance(dylora, DyLora)

    for rank, loss in alone.items():
        with dylora.at(rank):
            assert loss_of(made) <= 1.05 * loss
