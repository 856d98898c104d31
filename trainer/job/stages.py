"""The stages of a job in the order they happen: data, base, score, train, adapter, score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import model as models
from trainer.adapters import dylora, methods
from trainer.adapters.quantised_share import QuantisedShare
from trainer.adapters.stored_base import StoredBase
from trainer.base_family import import_code
from trainer.causal_probe import require_causal
from trainer.config import TrainerConfig
from trainer.device.garbage import collection_paused
from trainer.device.host_memory import free_memory, is_tight
from trainer.device.out_of_memory import return_memory_at_once
from trainer.device.waiting import adaptive_waits
from trainer.errors import ConfigError, PeerLost, Preempted
from trainer.group.order import Turn, rank_0_first
from trainer.group.rounds import on_all
from trainer.job.base_on_cards import BasePlan, load_on_card, plan_base
from trainer.job.context import JobContext
from trainer.job.fit_memory import fit_memory, kept_bytes
from trainer.job.prepare import PreparedInputs, prepare_inputs, scoring_peers
from trainer.job.resume import resume
from trainer.job.score_stage import score
from trainer.job.set_up import set_up
from trainer.job.step_callback import make_step_callback, open_store
from trainer.job.store_base import is_at_hand, storing
from trainer.job.use_kernels import use_kernels
from trainer.job.weight_files import require_host_memory, weight_files
from trainer.job.write_adapter import write_adapter
from trainer.method_table import Quant
from trainer.rundir.layout import ADAPTER, adapter_done, resolve
from trainer.rundir.status import Phase
from trainer.saving.state import Best
from trainer.training.loop import train
from trainer.training.objective import mean_loss


def run_stages(job: JobContext) -> None:
    """Do what is missing; raise `Preempted` at the first moment that suits after a notice."""
    with collection_paused(), rank_0_first(job.peers):
        prepared = prepare_inputs(job)
    job.stop_if_preempted()
    with adaptive_waits(
        threads=torch.get_num_threads(),
        on_cpu=prepared.device.type == "cpu",
        on_message=job.on_message,
    ):
        compute_stages(job, prepared)


def compute_stages(job: JobContext, prepared: PreparedInputs) -> None:
    """Do the stages that need the weights of the base: score, train, write, and score again."""
    # Where a machine has no adapter yet, its ranks make it anew from the last checkpoint.
    done = all(job.peers.gather(adapter_done(job.run_dir, job.config, job.inputs)))
    prepare_host(prepared, job.config)
    plan = plan_base(job, prepared)
    turn = Turn(job.peers, all_at_once=plan.sharded or is_at_hand(job, prepared))
    turn.wait()  # until the first rank has fetched the base and stored it for all
    with storing(job, prepared) as stored:
        with collection_paused():  # while the stored base is read by a thread of its own
            import_code(prepared.model_config, job.config.method)
        _run_on_base(job, prepared, Loading(stored=stored, turn=turn, plan=plan), done=done)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """From where the base is loaded, in which order by the ranks, and how it lies on cards."""

    stored: StoredBase | None
    turn: Turn
    plan: BasePlan

    def store(self) -> None:
        """Store what was loaded; wait for that where other ranks are to read it."""
        if self.stored is not None:
            self.stored.begin_writing()
            if self.turn.is_awaited:
                self.stored.wait()


def _run_on_base(
    job: JobContext, prepared: PreparedInputs, loading: Loading, *, done: bool
) -> None:
    """Load the base, from the store of this machine if it is there, and do what is missing."""
    shares: list[QuantisedShare] = []

    def load(device: torch.device) -> Any:
        found = models.load_base(
            prepared.source,
            job.config.method,
            precision=prepared.precision,
            device=device,
            on_share=lambda share: shares.append(report_share(job, share)),
            stored=loading.stored,
        )
        loading.store()
        return found

    base, sharded = load_on_card(job, prepared, loading.plan, load)
    prepared = replace(prepared, sharded=sharded)
    loading.turn.end()
    require_causal(base, prepared.precision)
    job.stop_if_preempted()
    rows = [*prepared.rows.items, *(prepared.held_out.items if prepared.held_out else ())]
    models.require_places(base, max(len(one.input_ids) for one in rows))
    score(job, prepared, base, "before")
    if done:
        adapted = models.load_adapter(base, job.run_dir / ADAPTER)
    else:
        if prepared.parent is None:
            for line in models.describe_targets(base, job.config.method):
                job.on_message(line)
        adapted = models.attach_adapter(
            base, job.config.method, job.config.train, parent=prepared.parent
        )
        best = learn(job, prepared, adapted)
        select_rank(job, prepared, adapted)
        with rank_0_first(job.peers):
            write_adapter(job, prepared, adapted, best, share=shares[0])
    score(job, prepared, adapted, "after")


def prepare_host(prepared: PreparedInputs, config: TrainerConfig) -> None:
    """Refuse a base that the machine's own memory cannot load; be careful where it is short.

    Of a base that is fetched from a hub while it is loaded, nothing is known yet.
    """
    on_processor = prepared.device.type == "cpu"
    if on_processor and is_tight():
        return_memory_at_once()
    if prepared.source.local:
        require_host_memory(
            weight_files(Path(prepared.source.name)),
            free_memory(),
            quantised=config.method.storage is not Quant.NONE,
            kept_bytes=kept_bytes(config, prepared) if on_processor else 0.0,
        )


def report_share(job: JobContext, share: QuantisedShare) -> QuantisedShare:
    """Say how much of the base is quantised; raise `ConfigError` if that is too little."""
    job.on_message(share.to_text())
    problem = share.problem(partly_quantised=job.config.method.partly_quantised)
    if problem is not None:
        raise ConfigError([problem])
    return share


def learn(job: JobContext, prepared: PreparedInputs, adapted: Any) -> Best:
    """Train from the newest whole checkpoint to the last step, and leave one of the end.

    With validation, the model then holds the adapter that was best, if that is kept.
    """
    context, state = set_up(job, prepared, adapted)
    prepared, context = use_kernels(job, prepared, context)
    store = open_store(job)
    store.sweep()
    resume(job, prepared, store, state)
    fit_memory(job, prepared, context, state)
    tracker = job.writers.tracker(
        job.run_dir, steps_done=state.counters.step, on_message=job.on_message
    )
    checkpointer = make_step_callback(
        job, state, store, fingerprint=prepared.fingerprint, tracker=tracker
    )
    job.heartbeat.update(phase=Phase.TRAINING, step=state.counters.step, at_once=True)
    try:
        train(context, state, checkpointer, until=prepared.schedule.steps)
    except (Preempted, PeerLost):
        if not checkpointer.save_now():
            job.on_message(
                "the state of this moment could not be saved; the checkpoint before it stands"
            )
        raise
    finally:
        tracker.close()
    context.method.materialize()
    checkpointer.finish()
    state.log.sync()
    if context.validation is not None and context.validation.keep_best:
        state.adopt_best()
        context.method.materialize()
        job.on_message(f"the adapter is the one of step {state.best.step or state.counters.step}")
    return state.best


def select_rank(job: JobContext, prepared: PreparedInputs, adapted: Any) -> None:
    """Measure the ranks of a DyLoRA model on `data.eval`; of other models there is only one.

    Raises:
        Preempted: a notice came; the comparison is done again from the last checkpoint.
        DataError: the held-out rows cannot be used.
    """
    dylora_method = methods.method_of(adapted)
    if not isinstance(dylora_method, dylora.DyLora):
        return
    config = job.config
    if config.data.eval is None:
        job.on_message(f"no rows in `data.eval` to choose a rank by: {dylora_method.r} it is")
        return
    job.heartbeat.update(phase=Phase.EVALUATING, at_once=True)

    def on_progress(done: int, total: int) -> None:
        job.heartbeat.update(message=f"compared {done} of {total} ranks")
        if job.flag.notice is not None:
            raise Preempted

    rows = prepared.objective.load(resolve(job.run_dir, config.data.eval))
    measure = partial(
        mean_loss,
        adapted,
        rows.items,
        objective=prepared.objective,
        micro_batch=config.train.batch_size,
    )
    losses: dict[int, float] = {}

    def compare() -> None:
        losses.update(dylora.compare_ranks(adapted, measure, on_progress=on_progress))

    on_all(scoring_peers(job, prepared), compare)  # a notice to one process ends it on all
    dylora_method.choose(losses)
    job.heartbeat.update(message=None)
    shown = ", ".join(f"{rank}: {loss:.4f}" for rank, loss in losses.items())
    job.on_message(f"validation loss by rank: {shown}; best: {dylora_method.best}")
