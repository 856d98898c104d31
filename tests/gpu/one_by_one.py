"""Measures what each kernel is worth: the same steps with none, with each alone, and with all.

    python -m gpu.one_by_one NOTES RUN_DIRECTORY

The base is loaded once, and every set of kernels does some steps of the run with the functions of
the real loop. NOTES is a JSON table by the name of the set, written anew after each of them.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu.kernels import card_at
from gpu.loading import load_run, log_line
from gpu.watched import label

WARM_UP, TIMED = 2, 3  # steps of each set
NONE, ALL = "none", "all"


def main(arguments: Sequence[str]) -> int:
    """Do the steps of every set, and leave the notes."""
    path, run_dir = map(Path, arguments)
    from trainer.job.job import prepare_environment

    prepare_environment()
    loaded = load(run_dir)
    found: dict[str, Any] = {}
    for name, names in sets_of([label(kernel) for kernel in loaded.kernels]).items():
        found[name] = loaded.measure(names)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    return 0


def sets_of(names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the sets of kernels that are measured, by a name for each."""
    alone = {name: (name,) for name in names}
    return {NONE: (), **(alone if len(names) > 1 else {}), **({ALL: tuple(names)} if names else {})}


@dataclass(kw_only=True)
class Loaded:
    """A training that is set up, and the kernels that suit it, also those of one name."""

    context: Any
    state: Any
    card: Any
    table: Any
    kernels: Sequence[Any]

    def measure(self, names: Sequence[str]) -> dict[str, Any]:
        """Do some steps with the kernels of these labels; return speed, peak and last loss."""
        import torch

        from trainer.kernels.choose import choose_kernels
        from trainer.training.loop import train

        chosen = choose_kernels(
            self.context.model,
            self.card,
            self.table,
            log_line,
            kernels=[one for one in self.kernels if label(one) in names],
        )
        context = replace(self.context, kernels=chosen)
        records = Records()
        on_card = self.card.device.type == "cuda"
        train(context, self.state, records, until=self.state.counters.step + WARM_UP)
        if on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        records.kept.clear()
        began_s = time.perf_counter()
        train(context, self.state, records, until=self.state.counters.step + TIMED)
        if on_card:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began_s
        return {
            "kernels": [label(one) for one in chosen.kernels],
            "tokens_per_s": sum(record["tokens"] for record in records.kept) / seconds,
            "peak_allocated_bytes": torch.cuda.max_memory_allocated() if on_card else None,
            "loss": records.kept[-1]["loss"],
            "waits_at": self.find_wait(context) if on_card else None,
        }

    def find_wait(self, context: Any) -> str | None:
        """Do one more step in which the host may not wait for the card; return where it would."""
        from trainer.training.loop import train

        refusing = replace(context, refuses_host_sync=True)
        try:
            train(refusing, self.state, Records(), until=self.state.counters.step + 1)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            self.state.optimizer.zero_grad(set_to_none=True)
            frames = traceback.extract_tb(error.__traceback__)
            return " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames[:-5:-1])
        return None


@dataclass
class Records:
    """Keeps the records of the steps, and writes nothing."""

    kept: list[dict[str, Any]] = field(default_factory=list)

    def after_step(self, record: dict[str, Any]) -> None:
        """Keep one."""
        self.kept.append(record)

    def amend(self, record: dict[str, Any]) -> None:
        """Keep one that a validation completed; none does here."""
        self.kept.append(record)


def load(run_dir: Path) -> Loaded:
    """Load what the run describes, as its training does."""
    from trainer import model as models
    from trainer.job.set_up import set_up
    from trainer.kernels.choose import candidates, choose_kernels

    run = load_run(run_dir)
    config, prepared = run.job.config, run.prepared
    adapted = models.attach_adapter(run.base, config.method, config.train)
    context, state = set_up(run.job, prepared, adapted)
    card = card_at(prepared.device.type, models.DTYPES[prepared.precision.compute])
    suiting = [
        one
        for one in candidates(config.train)
        if choose_kernels(adapted, card, config.train, log_line, kernels=[one]).kernels
    ]
    return Loaded(context=context, state=state, card=card, table=config.train, kernels=suiting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
