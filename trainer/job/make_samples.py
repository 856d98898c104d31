"""Decides which held-out rows a job answers while it trains, and when."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from trainer import model as models
from trainer.adapters import methods
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import Codec
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs, scoring_peers
from trainer.rundir.samples import SAMPLES
from trainer.training.samples import Samples, choose_samples, sampled_row
from trainer.training.sampling_schedule import sampling_interval, tokens_limit, wants_samples


def make_samples(
    job: JobContext,
    prepared: PreparedInputs,
    adapted: Any,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Samples | None:
    """Return which rows are answered, by what and when; None if none are."""
    config, held_out = job.config, prepared.held_out
    if held_out is None or not wants_samples(config):
        return None
    items = choose_samples(held_out.items, config.train.samples)
    places = models.place_limit(adapted)
    longest_prompt = max(len(item.prompt_ids) for item in items)
    return Samples(
        model=adapted,
        tokenizer=prepared.tokenizer,
        method=methods.method_of(adapted),
        autocast=autocast,
        flag=job.flag,
        on_message=job.on_message,
        on_status=lambda text: job.heartbeat.update(message=text),
        path=job.writers.path(job.run_dir / SAMPLES),
        examples=items,
        rows=[sampled_row(item, prepared.tokenizer) for item in items],
        stop_ids=_stop_ids(job, prepared),
        tokens_max=tokens_limit(
            max(item.answer_length for item in items),
            None if places is None else places - longest_prompt,
        ),
        interval=sampling_interval(config.train.validate_every, prepared.schedule.steps),
        last_step=prepared.schedule.steps,
        peers=scoring_peers(job, prepared),
    )


def _stop_ids(job: JobContext, prepared: PreparedInputs) -> tuple[int, ...]:
    """Return what ends an answer of a conversation beside EOS."""
    if job.config.data.messages is None:
        return ()
    length = job.config.train.max_length
    codec = Codec.from_tokenizer(prepared.tokenizer, max_length=length, seq2seq=False)
    return ChatEncoder(codec=codec, style=job.config.data.chat).stop_ids()
