"""Writes the trained adapter into the run directory, with a receipt of how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from trainer.adapters import methods
from trainer.adapters.quantised_share import QuantisedShare
from trainer.atomic import RealDisk, replace_directory
from trainer.job.context import JobContext
from trainer.job.fit_memory import memory_facts
from trainer.job.prepare import PreparedInputs
from trainer.rundir.layout import ADAPTER, ADAPTER_PARTIAL, RECEIPT, SCORES_UNASKED, training_facts
from trainer.saving.state import Best

# What the receipt in the adapter keeps of the status, for a watcher who comes after the end.
KEPT = ("step", "steps", "loss", "checkpoint_step", "exact", "inexact_from")


def write_adapter(
    job: JobContext, prepared: PreparedInputs, adapted: Any, best: Best, *, share: QuantisedShare
) -> None:
    """Write `adapter/` in PEFT's own format, whole or not at all, with a receipt inside.

    The receipt has the arithmetic that `train.precision: auto` became here: the base was rounded to
    it before it was quantised, which whoever quantises it again has to know. `share` is how much of
    the base was quantised. Another rank than the first writes nothing.
    """
    if not job.writers.write:
        return
    disk = RealDisk()
    target, temporary = job.run_dir / ADAPTER, job.run_dir / ADAPTER_PARTIAL
    if temporary.exists():
        disk.remove_tree(temporary)
    temporary.mkdir()
    methods.method_of(adapted).save(temporary)
    if job.config.model.new_tokens:  # or nobody else could write them
        prepared.tokenizer.save_pretrained(str(temporary))
    status = job.heartbeat.status
    receipt = {
        "training": training_facts(job.config, job.inputs),
        "status": {name: getattr(status, name) for name in KEPT},
        "best": asdict(best) if best.step else None,
        SCORES_UNASKED: True,
        "precision": str(prepared.precision.compute),
        "day": str(job.config.data.day or "") or None,
        "quantised": share.to_json(),
        "base": prepared.fingerprint["base"],
        "versions": prepared.fingerprint["versions"],
        **memory_facts(job.run_dir),
        **({"parent": parent_facts(job)} if prepared.parent else {}),
        "finished_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
    }
    (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    for path in sorted(one for one in temporary.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            disk.sync(file.fileno())
    disk.sync_directory(temporary)
    replace_directory(temporary, target, disk=disk)


def parent_facts(job: JobContext) -> dict[str, Any]:
    """Return the name and the SHA-256 of the adapter that the training went on from."""
    return {"name": job.config.method.parent, "sha256": job.inputs["method.from"]}
