"""Trains the very same model on the same rows with other trainers, one after the other.

    python -m gpu.peers NOTES RUN_DIRECTORY [PEER …]

Base, adapter and rows are made by the trainer's own functions from the run's config.json; the base
is loaded once, and each peer gets a fresh adapter. The loop is theirs, with their own defaults but
for what the run says, at their best: rows grouped by length. Nothing is saved, and no fixed order
of summing is demanded. Liger replaces functions of transformers for the whole process: it is last.
NOTES is a JSON table by the name of the peer, written anew after each of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpu.loading import load_run
from gpu.watched import Notes, end_measuring

TRAINER, TRL, LIGER = "Trainer", "TRL", "TRL with Liger"
PEERS = (TRAINER, TRL, LIGER)
NEEDS = {TRAINER: (), TRL: ("trl", "datasets"), LIGER: ("trl", "datasets", "liger_kernel")}
WARM_UP = 4  # steps before the epoch that is timed; grouping has the longest rows first


def main(arguments: Sequence[str]) -> int:
    """Train with each peer that is installed, and leave the notes."""
    path, run_dir, *wanted = arguments
    found: dict[str, Any] = {}
    loaded = load(Path(run_dir))
    for name in wanted or PEERS:
        found[name] = attempt(name, loaded)
        partial = Path(path).with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    return 0


def missing(name: str) -> list[str]:
    """Return the packages of a peer that this Python lacks."""
    return [package for package in NEEDS[name] if find_spec(package) is None]


def attempt(name: str, loaded: Any) -> dict[str, Any]:
    """Return the notes of one peer; with `missing` or `error` if it did not train."""
    lacking = missing(name)
    if lacking:
        return {"missing": lacking}
    try:
        notes = train(name, loaded)
    except Exception as error:  # noqa: BLE001 - theirs, whatever it is; the next one is tried
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": text[:400]}
    return asdict(notes)


def load(run_dir: Path) -> Any:
    """Load what the run describes, and undo what the trainer asks of torch for its own bits."""
    import torch

    from trainer.data.examples import padding_id

    run = load_run(run_dir)
    torch.use_deterministic_algorithms(mode=False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    tokenizer = run.prepared.tokenizer
    return SimpleNamespace(
        base=run.base,
        rows=run.prepared.rows.items,
        tokenizer=tokenizer,
        pad_id=padding_id(tokenizer),
        config=run.job.config,
        directory=run_dir,
    )


def train(name: str, loaded: Any) -> Notes:
    """Do a warm-up and an epoch, within the steps of the run, with an adapter of its own."""
    import torch

    from trainer import model as models

    notes = Notes()
    torch.manual_seed(loaded.config.train.seed)
    adapted = models.attach_adapter(loaded.base, loaded.config.method, loaded.config.train)
    adapted.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loops: dict[str, Callable[..., Any]] = {TRAINER: with_trainer, TRL: with_trl, LIGER: with_liger}
    try:
        result = loops[name](adapted, loaded, notes)
        notes.loss = float(result.training_loss)
        end_measuring(notes)
    finally:
        loaded.base = adapted.unload()
    return notes


def arguments_of(loaded: Any) -> dict[str, Any]:
    """Return what the run says, in their words."""
    import torch

    table = loaded.config.train
    micro_batch = table.batch_size if table.micro_batch == "auto" else table.micro_batch
    return {
        "output_dir": str(loaded.directory / "theirs"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": table.batch_size // micro_batch,
        "max_steps": min(WARM_UP + len(loaded.rows) // table.batch_size, table.steps),
        "learning_rate": table.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(table.warmup),
        "max_grad_norm": table.max_grad_norm,
        "train_sampling_strategy": "group_by_length",
        "bf16": str(table.precision) == "bf16",
        "fp16": str(table.precision) == "fp16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": loaded.config.train.gradient_checkpointing is True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": table.seed,
    }


def with_trainer(adapted: Any, loaded: Any, notes: Notes) -> Any:
    """Train with `transformers.Trainer`, its batches padded as the trainer here pads them."""
    from transformers import Trainer, TrainingArguments

    from trainer.data.examples import collate

    def padded(some: Sequence[dict[str, list[int]]]) -> Any:
        return collate([SimpleNamespace(**one) for one in some], loaded.pad_id)  # type: ignore[misc]

    made = Trainer(
        model=adapted,
        args=TrainingArguments(remove_unused_columns=False, **arguments_of(loaded)),
        train_dataset=columns(loaded),
        data_collator=padded,
    )
    return run(made, notes)


def with_trl(adapted: Any, loaded: Any, notes: Notes, *, liger: bool = False) -> Any:
    """Train with TRL's SFTTrainer on the tokens as they are; every token is learnt."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    made = SFTTrainer(
        model=adapted,
        args=SFTConfig(
            max_length=loaded.config.train.max_length,
            use_liger_kernel=liger,
            **arguments_of(loaded),
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": one["input_ids"]} for one in columns(loaded)]
        ),
        processing_class=loaded.tokenizer,
    )
    return run(made, notes)


def with_liger(adapted: Any, loaded: Any, notes: Notes) -> Any:
    """Train with TRL and the kernels of Liger that it switches on."""
    return with_trl(adapted, loaded, notes, liger=True)


def columns(loaded: Any) -> list[dict[str, list[int]]]:
    """Return the rows as plain lists."""
    return [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in loaded.rows]


def run(made: Any, notes: Notes) -> Any:
    """Train, and note the tokens and the end of every step.

    Batches are made ahead, so their tokens are counted as they are made and taken in that order.
    """
    import torch
    from transformers import TrainerCallback

    collator, tokens = made.data_collator, []

    def counted(some: Sequence[dict[str, Any]]) -> Any:
        tokens.append(sum(len(one["input_ids"]) for one in some))
        return collator(some)

    class Watch(TrainerCallback):  # type: ignore[misc] # transformers ships no types
        def on_step_end(self, arguments: Any, state: Any, _control: Any, **_named: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            passes = arguments.gradient_accumulation_steps
            batches = tokens[passes * (state.global_step - 1) : passes * state.global_step]
            step = {"step": state.global_step, "tokens": sum(batches), "at_s": time.monotonic()}
            notes.steps.append(step)

    made.data_collator = counted
    made.add_callback(Watch())
    return made.train()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
