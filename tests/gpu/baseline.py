"""Trains the very same model on the same batches with `transformers.Trainer`, for comparison.

    python -m gpu.baseline NOTES RUN_DIRECTORY

Base, adapter and rows are made by the trainer's own functions from the run's config.json, and come
in the same order and portions. The loop is theirs, with their defaults; nothing is saved, and no
fixed order of summing is demanded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu.watched import Notes, end_measuring


def main(arguments: Sequence[str]) -> int:
    """Train, and leave the notes."""
    path, run_dir = map(Path, arguments)
    from trainer.job.job import prepare_environment

    prepare_environment()
    notes = Notes()
    train(run_dir, notes)
    path.write_text(json.dumps(asdict(notes)), encoding="utf-8")
    return 0


def train(run_dir: Path, notes: Notes) -> None:
    """Load what the run describes and do its steps with `transformers.Trainer`."""
    import torch

    from trainer import model as models
    from trainer.config import load_config
    from trainer.data.examples import load_examples, padding_id
    from trainer.device.determinism import set_threads
    from trainer.schedule import make_schedule

    config = load_config(run_dir / "config.json")
    set_threads(config.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = models.find_source(config.model, run_dir)
    tokenizer = models.load_tokenizer(source)
    rows = load_examples(
        config.data,
        Path(config.data.train_sets[0].path),
        tokenizer,
        max_length=config.train.max_length,
    ).items
    precision = models.device_precision(config.train, device=device, seq2seq=False)
    base = models.load_base(source, config.method, precision=precision, device=device)
    adapted = models.attach_adapter(base, config.method, config.train)
    adapted.train()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    plan = make_schedule(config.train, [len(row.input_ids) for row in rows])
    loop(adapted, rows, plan, config, padding_id(tokenizer), run_dir / "theirs", notes)
    end_measuring(notes)


def loop(  # noqa: PLR0917 - what their loop wants, once
    model: Any, rows: Any, plan: Any, config: Any, pad_id: int, directory: Path, notes: Notes
) -> None:  # fmt: skip
    """Do the steps; note the time after each."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from trainer.data.examples import collate

    order = [row for step in range(plan.steps) for row in plan.batch(step)]

    class InOrder(Trainer):  # type: ignore[misc] # transformers ships no types
        def _get_train_sampler(self, *_arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(order)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_named: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            batch = plan.batch(state.global_step - 1)
            tokens = sum(len(rows[row].input_ids) for row in batch)
            notes.steps.append(
                {"step": state.global_step, "tokens": tokens, "at_s": time.monotonic()}
            )

    table = config.train
    micro_batch = table.batch_size if table.micro_batch == "auto" else table.micro_batch
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=table.batch_size // micro_batch,
        max_steps=plan.steps,
        learning_rate=table.lr,
        lr_scheduler_type="linear",
        max_grad_norm=table.max_grad_norm,
        bf16=str(table.precision) == "bf16",
        fp16=str(table.precision) == "fp16",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    InOrder(
        model=model,
        args=arguments,
        train_dataset=[rows[row] for row in order],
        data_collator=lambda some: collate(some, pad_id),
        callbacks=[Watch()],
    ).train()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
