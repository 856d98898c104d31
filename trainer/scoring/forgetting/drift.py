"""Estimates how far a fine-tuned model moved from its base on texts that the base itself writes.

Before training the base goes on with a few neutral openings, sampled at temperature 1. The mean of
log p_base - log p_tuned over those very tokens is an unbiased estimate of the divergence
KL(base || tuned) per token, in nats; 0 is a model that changed nothing. It needs no data and no
right answers, in any language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from trainer.base_limits import model_rows
from trainer.data.codec import NOT_TRAINED, Codec, Example
from trainer.data.examples import padding_id
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.scoring.constrained import Decoder, eval_mode
from trainer.scoring.forgetting.shipped import OPENINGS, openings, sha256_of
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.loss_figures import RowLoss
from trainer.scoring.predict import OnProgress
from trainer.scoring.resampling import Floats, resampled_interval
from trainer.scoring.shared_rows import compute_rows

TOKENS_MAX = 128
"""Of a continuation, its end token included."""
RECORD_MAX = 1024
"""Tokens of an opening or a continuation in a record that came from another machine, at most."""
SEED = 20261130
PROBABILITY_STEP = 2.0**-40
"""Of a distribution over 262,144 words, rounding to it loses less than 3e-7."""
LOOK_EVERY = 8
"""Tokens between two looks whether the machine goes away."""


def opening_examples(tokenizer: Any, texts: Sequence[str], *, seq2seq: bool) -> list[Example]:
    """Return each opening as a prompt without an answer; an encoder reads it, if there is one."""
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    found = []
    for number, (text, ids) in enumerate(
        zip(texts, codec.encode_written(list(texts)), strict=True), 1
    ):
        head = (*codec.prefix, *ids, *codec.suffix)
        found.append(Example(head, (), text, "", number, len(head)))
    return found


def continue_openings(  # noqa: PLR0913 - a model with all that a generation is made of
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Example],
    *,
    tokens_max: int,
    kept: KeptRows,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> list[tuple[int, ...]]:
    """Return the tokens that the model goes on with, drawn at temperature 1, with an end token.

    The random numbers of an opening are a function of its place: neither batches nor a scoring
    that goes on after a kill change what is drawn, nor do ranks that share the batches. Nothing of
    the model changes.
    """
    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    decoder = Decoder(
        model, eos_ids=[codec.eos_id], pad_id=padding_id(tokenizer, model_rows(model))
    )
    found = set(kept.rows(len(prompts)))

    def write(batch: list[int]) -> dict[int, dict[str, Any]]:
        draws = np.stack([np.random.default_rng([SEED, at]).random(tokens_max) for at in batch])
        new = _sampled(
            decoder,
            [prompts[at].prompt_ids for at in batch],
            draws,
            eos_id=codec.eos_id,
            on_turn=lambda: on_progress(len(found), len(prompts)),
        )
        found.update(batch)
        return {at: {"ids": ids} for at, ids in zip(batch, new, strict=True)}

    heads = [one.prompt_ids for one in prompts]
    with eval_mode(model):
        rows = compute_rows(heads, write, kept=kept, on_progress=on_progress, peers=peers)
    return [tuple(row["ids"]) for row in rows]


def _sampled(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    draws: Floats,
    *,
    eos_id: int,
    on_turn: Callable[[], None],
) -> list[list[int]]:
    """Draw a token for each column of `draws`, [batch, tokens], until all have ended."""
    state = decoder.prefill(prompts)
    written: list[list[int]] = [[] for _ in prompts]
    turns = draws.shape[1]
    for turn in range(turns):
        chosen = draw_tokens(state.logits, draws[:, turn])
        for ids, token in zip(written, chosen, strict=True):
            if eos_id not in ids[-1:]:
                ids.append(token)
        if turn == turns - 1 or all(ids[-1] == eos_id for ids in written):
            break
        if turn % LOOK_EVERY == 0:
            on_turn()
        state = decoder.step(state, chosen)
    return written


def draw_tokens(logits: torch.Tensor, draws: Floats) -> list[int]:
    """Return a token for each row of logits [batch, words] by the inverse of its distribution.

    `draws` are uniform in 0..1; the same one gives the same token. Probabilities are summed as
    whole numbers of `PROBABILITY_STEP`, which is exact in any order: on a GPU there is no other
    order that is the same every time.
    """
    steps = (logits.double().softmax(dim=-1) / PROBABILITY_STEP).to(torch.int64)
    cumulative = steps.cumsum(dim=-1)
    place = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None]
    chosen = (cumulative <= (place * cumulative[:, -1:]).to(torch.int64)).sum(dim=-1)
    return [int(token) for token in chosen.clamp(max=logits.shape[-1] - 1).tolist()]


def continuation_examples(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, seq2seq: bool
) -> list[Example]:
    """Return each opening with its continuation as what is predicted."""
    return [
        Example(tuple(head), tuple(tail), "", "", number, len(head))
        if seq2seq
        else Example(
            (*head, *tail), (*(NOT_TRAINED,) * len(head), *tail), "", "", number, len(head)
        )
        for number, (head, tail) in enumerate(zip(prompts, continuations, strict=True), 1)
    ]


def drift_record(examples: Sequence[Example], losses: Sequence[RowLoss]) -> dict[str, Any]:
    """Return what is kept of the base: its continuations, and the nats it gives them."""
    return {
        "set": sha256_of(OPENINGS),
        "tokens": sum(one.tokens for one in losses),
        "continuations": [
            {
                "opening": " ".join(map(str, item.prompt_ids)),
                "continuation": " ".join(
                    str(label) for label in item.labels if label != NOT_TRAINED
                ),
                "nats": loss.nats,
            }
            for item, loss in zip(examples, losses, strict=True)
        ],
    }


def recorded_examples(
    record: Mapping[str, Any], *, seq2seq: bool, id_count: int | None
) -> list[Example]:
    """Return the continuations of a record, checked: they may have come from another machine.

    Raises:
        ValueError: they are not of token ids that the model has.
    """
    if len(record["continuations"]) > len(openings()):
        raise ValueError("there are more continuations than openings")
    parts = [
        [[int(number) for number in str(one[key]).split()] for key in ("opening", "continuation")]
        for one in record["continuations"]
    ]
    most = float("inf") if id_count is None else id_count
    flat = [number for both in parts for ids in both for number in ids]
    longest = max((len(ids) for both in parts for ids in both), default=0)
    shortest = min((len(ids) for both in parts for ids in both), default=0)
    if not flat or min(flat) < 0 or max(flat) >= most or shortest == 0 or longest > RECORD_MAX:
        raise ValueError("the continuations are not of this base")
    heads, tails = zip(*parts, strict=True)
    return continuation_examples(heads, tails, seq2seq=seq2seq)


def drift_figure(
    record: Mapping[str, Any], losses: Sequence[RowLoss], *, resamples: int
) -> dict[str, Any]:
    """Return the drift in nats per token with its interval: openings are resampled, whole.

    Openings to which either model gives no number are counted in `not_numbers` and left out.

    Raises:
        ValueError: none is left.
    """
    base = [one["nats"] for one in record["continuations"]]
    both = [
        (was, now.nats, now.tokens)
        for was, now in zip(base, losses, strict=True)
        if was is not None and now.nats is not None
    ]
    if not both:
        raise ValueError("no continuation has a probability that is a number")
    was, now, tokens = (np.array(column, dtype=np.float64) for column in zip(*both, strict=True))

    def per_token(weights: Floats) -> Floats:
        drifts: Floats = (weights @ (now - was)) / (weights @ tokens)
        return drifts

    return {
        **asdict(resampled_interval(per_token, len(both), resamples=resamples)),
        "n": len(both),
        "tokens": int(tokens.sum()),
        "not_numbers": len(base) - len(both),
    }
