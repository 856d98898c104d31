"""Lets a model answer rows freely: greedily, each up to its end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.base_limits import model_rows, require_embedded
from trainer.data.chat.encoder import words_of
from trainer.data.codec import Codec, Example
from trainer.data.examples import padding_id
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.predict import OnProgress


@dataclass(frozen=True, kw_only=True)
class FreeAnswer:
    """What a model wrote after a prompt, and whether it ended by itself."""

    text: str
    stopped: bool


def answer_freely(  # noqa: PLR0913 - a model with all that a generation is made of
    model: Any,
    tokenizer: Any,
    items: Sequence[Example],
    *,
    tokens_max: int,
    stop_ids: Sequence[int] = (),
    kept: KeptRows | None = None,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> list[FreeAnswer]:
    """Return the greedy answer to each item, in order; nothing of the model changes.

    `stop_ids` end an answer beside the EOS. What is in `kept` is not generated again, and every
    batch that is done goes there, under the item's place in `items`. Which rows share a batch is
    decided by all of `items`, so a scoring that goes on gives the answers of one that was not
    interrupted. The ranks share the batches.

    Raises:
        DataError: a prompt has tokens for which the base has no embedding.
        DoesNotFit: memory does not even suffice for one prompt.
    """
    from trainer.scoring.constrained import Decoder, eval_mode
    from trainer.scoring.shared_rows import compute_rows

    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    id_count = model_rows(model)
    require_embedded(((item.row, item.prompt_ids) for item in items), id_count, tokenizer)
    pad_id = padding_id(tokenizer, id_count)
    decoder = Decoder(model, eos_ids=[codec.eos_id, *stop_ids], pad_id=pad_id)

    def answer(batch: list[int]) -> dict[int, dict[str, Any]]:
        state = decoder.prefill([items[at].prompt_ids for at in batch])
        written = decoder.generate(state, tokens_max=tokens_max)
        return {
            at: {
                "text": words_of(tokenizer, one.tokens, items[at].opening),
                "stopped": one.stopped,
            }
            for at, one in zip(batch, written, strict=True)
        }

    prompts = [item.prompt_ids for item in items]
    with eval_mode(model):
        rows = compute_rows(prompts, answer, kept=kept, on_progress=on_progress, peers=peers)
    return [FreeAnswer(text=str(row["text"]), stopped=bool(row["stopped"])) for row in rows]
