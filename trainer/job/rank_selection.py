"""After a DyLoRA run: the loss of every rank on held-out rows, so that the rank is chosen by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.adapters import dylora, methods
from trainer.data.examples import load_examples, padding_id
from trainer.errors import Preempted
from trainer.rundir.layout import resolve
from trainer.rundir.status import Phase

if TYPE_CHECKING:
    from trainer.context import JobContext
    from trainer.job.prepared import PreparedInputs


def compare(job: JobContext, prepared: PreparedInputs, adapted: Any) -> None:
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

    rows = load_examples(
        config.data,
        resolve(job.run_dir, config.data.eval),
        prepared.tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(adapted.config.is_encoder_decoder),
    )
    losses = dylora.compare_ranks(
        adapted,
        rows.items,
        pad_id=padding_id(prepared.tokenizer),
        micro_batch=config.train.batch_size,
        on_progress=on_progress,
    )
    dylora_method.choose(losses)
    job.heartbeat.update(message=None)
    shown = ", ".join(f"{rank}: {loss:.4f}" for rank, loss in losses.items())
    job.on_message(f"validation loss by rank: {shown}; best: {dylora_method.best}")
