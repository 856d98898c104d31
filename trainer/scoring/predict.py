"""Lets a model answer every row of an eval set twice: freely, and constrained to the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.base_limits import model_rows, require_embedded
from trainer.data.chat.encoder import words_of
from trainer.data.codec import Codec
from trainer.data.examples import padding_id
from trainer.data.template import Template
from trainer.errors import ConfigError
from trainer.eval_tables.labels import LabelEvalTable
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.scoring.answers import Answer, read_answer, require_apart, write_answer
from trainer.scoring.eval_set import EvalSet, indicator_matrix
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.resampling import Floats

OnProgress = Callable[[int, int], None]  # rows done, rows in all
MARGIN_TOKENS = 2  # beyond the longest right answer: enough to see that a model does not stop


@dataclass(kw_only=True)
class Predictions:
    """All answers of a model in the order of the examples; `probabilities` is [rows, labels].

    Where those are NaN (`non_finite` counts the rows) the constrained answer is the empty set.
    """

    texts: list[str]
    stopped: list[bool]
    free: list[Answer]
    bound: list[frozenset[str]]
    probabilities: Floats
    non_finite: int = 0


def predict(  # noqa: PLR0913 - a model with all that a scoring is made of
    model: Any,
    tokenizer: Any,
    eval_set: EvalSet,
    *,
    kept: KeptRows | None = None,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> Predictions:
    """Answer every example, freely and constrained; nothing of the model changes.

    What is in `kept` is not answered again, and every batch that is done goes there, under the
    example's place. The ranks share the batches.

    Raises:
        ConfigError: the tokenizer cannot tell two answers apart, or no answer is a number.
    """
    from trainer.scoring.constrained import Decoder, Trie, eval_mode
    from trainer.scoring.shared_rows import compute_rows

    seq2seq = bool(model.config.is_encoder_decoder)
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    table, items, completion = eval_set.table, eval_set.items, eval_set.completion
    candidates = eval_set.candidates
    texts = [_filled(completion, write_answer(labels, table)) for labels in candidates]
    encoded = codec.encode(texts, completion)
    require_apart(encoded, texts)
    trie = Trie(encoded, eos_id=codec.eos_id)
    members = indicator_matrix(candidates, table.labels)
    longest = max(item.answer_length for item in items)
    id_count = model_rows(model)
    require_embedded(((item.row, item.prompt_ids) for item in items), id_count, tokenizer)
    pad_id = padding_id(tokenizer, id_count)
    decoder = Decoder(model, eos_ids=[codec.eos_id, *eval_set.stop_ids], pad_id=pad_id)

    def answer(batch: list[int]) -> dict[int, dict[str, Any]]:
        state = decoder.prefill([items[at].prompt_ids for at in batch])
        if any(items[at].opening for at in batch):  # the labels stand behind what opens an answer
            opened = decoder.prefill([items[at].prompt_ids + items[at].opening for at in batch])
        else:
            opened = state.fork()
        probabilities = decoder.score_choices(opened, trie).numpy()
        generated = decoder.generate(state, tokens_max=longest + MARGIN_TOKENS)
        new: dict[int, dict[str, Any]] = {}
        for at, written, shares in zip(batch, generated, probabilities, strict=True):
            finite = bool(np.isfinite(shares).all())
            new[at] = {
                "text": words_of(tokenizer, written.tokens, items[at].opening),
                "stopped": written.stopped,
                "bound": sorted(candidates[int(shares.argmax())]) if finite else None,
                "probabilities": (shares @ members).tolist() if finite else None,
            }
        return new

    prompts = [item.prompt_ids for item in items]
    with eval_mode(model):
        rows = compute_rows(prompts, answer, kept=kept, on_progress=on_progress, peers=peers)
    return _gathered(rows, table)


def _gathered(rows: Sequence[Mapping[str, Any]], table: LabelEvalTable) -> Predictions:
    """Return the answers to all rows; raise `ConfigError` if no answer is a number."""
    non_finite = sum(row["bound"] is None for row in rows)
    if non_finite == len(rows):
        problem = (
            "no answer of the model to a held-out row is a number (NaN): it overflows or is damaged"
        )
        hint = "try `fp32`, or a GPU that computes in bf16"
        raise ConfigError([f"train.precision: {problem}; {hint}"])
    nothing = [0.0] * len(table.labels)
    return Predictions(
        texts=[row["text"] for row in rows],
        stopped=[row["stopped"] for row in rows],
        free=[read_answer(row["text"], table) for row in rows],
        bound=[frozenset(row["bound"] or ()) for row in rows],
        probabilities=np.array([row["probabilities"] or nothing for row in rows], dtype=float),
        non_finite=non_finite,
    )


def _filled(completion: Template, answer: str) -> str:
    """Return the completion with its field filled; one without exactly one field is left bare."""
    fields = completion.fields
    return completion.render({fields[0]: answer}) if len(fields) == 1 else answer
