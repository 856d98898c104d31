"""Scores the held-out rows before and after training, once each."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from trainer.adapters.parent import adapter_sha256
from trainer.atomic import RealDisk, replace_file
from trainer.group.rounds import on_first
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs, scoring_peers
from trainer.rundir.layout import (
    ADAPTER,
    SCORED,
    read_table,
    scored,
    scoring_facts,
    scoring_scratch,
)
from trainer.rundir.status import Phase
from trainer.scoring.score_words import result_words

if TYPE_CHECKING:
    from trainer.scoring.result import EvalResult


def score(
    job: JobContext, prepared: PreparedInputs, model: Any, stage: Literal["before", "after"]
) -> None:
    """Evaluate `model` and write `eval-<stage>.json`, unless that is there or nothing is wanted.

    All ranks do it together; rank 0 decides whether it is to be done, and writes. None goes on
    before that is written.

    Raises:
        Preempted: a notice came, to any of the ranks; what is done is kept.
        PeerLost: another rank is gone; what was gathered before is kept.
    """
    if on_first(job.peers, lambda: _is_done(job, stage)):
        return
    from trainer.scoring import evaluate

    job.heartbeat.update(phase=Phase.EVALUATING, at_once=True)

    passes = 0  # answers, their loss, and whatever else the kind asks for

    def on_progress(done: int, total: int) -> None:
        nonlocal passes
        passes += done == 0
        part = f", pass {passes}" if passes > 1 else ""
        job.heartbeat.update(message=f"evaluated {done} of {total} rows ({stage} training{part})")
        job.stop_if_preempted()

    result = evaluate.run(
        job.run_dir,
        job.config,
        model,
        prepared.tokenizer,
        stage=stage,
        on_progress=on_progress,
        facts=on_first(job.peers, lambda: facts_of_model(job, prepared, stage)),
        peers=scoring_peers(job, prepared),
    )
    on_first(job.peers, lambda: _end(job, stage, result))


def _is_done(job: JobContext, stage: str) -> bool:
    """Tell whether nothing is left to be scored; what was kept meanwhile is then removed."""
    if not scored(job.run_dir, stage, job.config, job.inputs):
        return False
    scratch = scoring_scratch(job.run_dir, stage)
    if scratch.exists():  # a kill came after the result and before this
        RealDisk().remove_tree(scratch)
    return True


def _end(job: JobContext, stage: str, result: EvalResult) -> None:
    """Note that a stage is scored, and say the result."""
    disk, scratch = RealDisk(), scoring_scratch(job.run_dir, stage)
    receipt = read_table(job.run_dir / SCORED)
    receipt[stage] = scoring_facts(stage, job.config, job.inputs)
    replace_file(job.run_dir / SCORED, json.dumps(receipt, indent=1) + "\n", disk=disk)
    if scratch.exists():
        disk.remove_tree(scratch)
    job.heartbeat.update(message=None)
    before = read_table(job.run_dir / "eval-before.json") if stage == "after" else {}
    if reason := result.details.get("not_answered"):
        job.on_message(f"{stage} training: no answers are generated, only their loss: {reason}")
    job.on_message(f"{stage} training: {result_words(asdict(result), before)}")


def facts_of_model(job: JobContext, prepared: PreparedInputs, stage: str) -> dict[str, Any]:
    """Return what decides about a score: rows kept of another model or config are no part of it."""
    facts = {
        **job.inputs,
        **scoring_facts(stage, job.config, job.inputs),
        **prepared.fingerprint["base"],
        "versions": prepared.fingerprint["versions"],
    }
    if stage == "after":
        facts["adapter"] = adapter_sha256(job.run_dir / ADAPTER)
    return facts
