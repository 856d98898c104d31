"""Saves the state of adapters of several sizes and times what the training loop waits for.

python -m bench.saving_work RESULT.json FOLDER PARAMETERS ...
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SAVES, TENSORS = 3, 420


def main(arguments: Sequence[str]) -> int:
    """Write stall, time until durable, CPU seconds and default interval, by size."""
    from trainer.job.job import prepare_environment

    prepare_environment()
    result, folder, *sizes = arguments
    found = {size: save(int(size), Path(folder) / size) for size in sizes}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0


def save(parameters: int, folder: Path) -> dict[str, float]:
    """Save some times as the trainer does, with AdamW's two moments; return the means."""
    import torch

    from trainer.atomic import RealDisk
    from trainer.config import CheckpointTable
    from trainer.rundir.status import MetricsLog
    from trainer.saving.async_saver import AsyncSaver
    from trainer.saving.checkpoint import Store
    from trainer.saving.interval import choose_interval
    from trainer.saving.state import TrainingState

    folder.mkdir()
    values = {
        f"layer.{number}": torch.nn.Parameter(torch.randn(parameters // TENSORS))
        for number in range(TENSORS)
    }
    optimizer = torch.optim.AdamW(list(values.values()))
    for value in values.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    log = MetricsLog(folder / "metrics.jsonl")
    state = TrainingState(parameters=values, optimizer=optimizer, scaler=None, log=log)
    store = Store(folder / "checkpoints", keep=2, disk=RealDisk())
    saver = AsyncSaver(store, clock=time.monotonic)
    stalls, durable, used = [], [], []
    for _ in range(SAVES):
        state.counters.step += 1
        log.append({"step": state.counters.step})
        began_s, cpu_s = time.monotonic(), time.process_time()
        saver.start(state.snapshot({}))
        stalls.append(time.monotonic() - began_s)
        done = saver.collect(wait=True)
        used.append(time.process_time() - cpu_s)
        if done is None or done.failure:
            raise OSError(f"a checkpoint could not be saved: {done}")
        durable.append(done.seconds)
    shutil.rmtree(folder)
    interval = choose_interval(CheckpointTable(), band=None, save_s=durable[-1])
    return {
        "stall_s": sum(stalls) / SAVES,
        "durable_s": sum(durable) / SAVES,
        "cpu_s": sum(used) / SAVES,
        "interval_s": interval.interval_s or 0.0,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
