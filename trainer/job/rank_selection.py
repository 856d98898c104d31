"""After a DyLoRA run: the loss of every rank on held-out rows, so that the rank is chosen by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.adapters import dylora, methods
from trainer.data.examples import load_examples, padding_id
from trainer.errors import Preempted
from trainer.rundir.layout import resolve
from trainer.rundir.status import Phase

if TYPE_CHECKING:
    from trainer.context import Desk
    from trainer.job.prepared import Material


def compare(desk: Desk, material: Material, adapted: Any) -> None:
    """Measure the ranks of a DyLoRA model on `data.eval`; of other models there is only one.

    Raises:
        Preempted: a notice came; the comparison is done again from the last checkpoint.
        DataError: the held-out rows cannot be used.
    """
    dial = methods.method_of(adapted)
    if not isinstance(dial, dylora.Dial):
        return
    config = desk.config
    if config.data.eval is None:
        desk.on_message(f"no rows in `data.eval` to choose a rank by: {dial.r} it is")
        return
    desk.heartbeat.update(phase=Phase.EVALUATING, at_once=True)

    def beat(done: int, total: int) -> None:
        desk.heartbeat.update(message=f"compared {done} of {total} ranks")
        if desk.flag.notice is not None:
            raise Preempted

    rows = load_examples(
        config.data,
        resolve(desk.run_dir, config.data.eval),
        material.tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(adapted.config.is_encoder_decoder),
    )
    losses = dylora.compare_ranks(
        adapted,
        rows.items,
        pad_id=padding_id(material.tokenizer),
        portion=config.train.batch_size,
        beat=beat,
    )
    dial.choose(losses)
    desk.heartbeat.update(message=None)
    shown = ", ".join(f"{rank}: {loss:.4f}" for rank, loss in losses.items())
    desk.on_message(f"validation loss by rank: {shown}; best: {dial.best}")
