"""Loads rows with the labels that are right for them, parsed as the answers of a model are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import TrainerConfig
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import Codec, Example
from trainer.data.examples import Examples, load_examples, load_texts
from trainer.data.template import Template
from trainer.errors import DataError
from trainer.eval_tables.labels import LabelEvalTable
from trainer.rundir.layout import resolve
from trainer.scoring import metrics
from trainer.scoring.answers import all_answers, label_problem, read_answer
from trainer.scoring.chosen_rows import choose_rows


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts with their labels as booleans [texts, labels], and as they are written, if needed."""

    texts: Sequence[str]
    labels: metrics.Bools
    written: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The held-out examples with their right labels, and how an answer is written.

    `learnt_sets` are the label sets of the training rows, the commonest first; `stop_ids` are what
    ends an answer of a conversation beside EOS.
    """

    items: tuple[Example, ...]
    references: tuple[frozenset[str], ...]
    table: LabelEvalTable
    completion: Template
    learnt_sets: tuple[frozenset[str], ...] = ()
    stop_ids: tuple[int, ...] = ()

    @property
    def candidates(self) -> list[frozenset[str]]:
        """The answers among which constrained decoding chooses."""
        return list(all_answers(self.table, self.learnt_sets))


def load_eval_set(config: TrainerConfig, run_dir: Path, model: Any, tokenizer: Any) -> EvalSet:
    """Load the held-out rows.

    Raises:
        DataError: the rows cannot be read, or carry labels that `eval.labels` does not list.
    """
    assert config.label_table is not None
    assert config.data.eval is not None
    loaded = _load(config, run_dir, config.data.eval, model, tokenizer)
    items = choose_rows(loaded.items, config.label_table.rows)
    completions = [(item.row, item.completion) for item in items]
    return EvalSet(
        items=items,
        references=tuple(read_references(completions, config.label_table, place=config.data.eval)),
        table=config.label_table,
        completion=Template.parse(config.data.completion),
        stop_ids=_stop_ids(config, tokenizer) if config.data.messages is not None else (),
    )


def load_training_texts(
    config: TrainerConfig, run_dir: Path, model: Any, tokenizer: Any
) -> LabelledTexts:
    """Load the training rows as texts and labels, so that a wrong label is found before training.

    Raises:
        DataError: the rows cannot be read, or carry labels that `eval.labels` does not list.
    """
    assert config.label_table is not None
    rows: list[tuple[int, str, str]] = []
    references: list[frozenset[str]] = []
    for name in (one.path for one in config.data.train_sets):
        if config.data.messages is None:
            found = load_texts(config.data, resolve(run_dir, name))
        else:  # only the tokenizer's template knows where the last answer of a conversation begins
            loaded = _load(config, run_dir, name, model, tokenizer)
            found = [(item.row, item.prompt, item.completion) for item in loaded.items]
        completions = [(number, completion) for number, _, completion in found]
        references += read_references(completions, config.label_table, place=name)
        rows += found
    return LabelledTexts(
        texts=[prompt for _, prompt, _ in rows],
        labels=indicator_matrix(references, config.label_table.labels),
        written=[completion for _, _, completion in rows],
    )


def _stop_ids(config: TrainerConfig, tokenizer: Any) -> tuple[int, ...]:
    codec = Codec.from_tokenizer(tokenizer, max_length=config.train.max_length, seq2seq=False)
    return ChatEncoder(codec=codec, style=config.data.chat).stop_ids()


def _load(config: TrainerConfig, run_dir: Path, name: str, model: Any, tokenizer: Any) -> Examples:
    """Load the rows; of a conversation that is several examples, the one of its last answer."""
    found = load_examples(
        config.data,
        resolve(run_dir, name),
        tokenizer,
        max_length=config.train.max_length,
        seq2seq=bool(model.config.is_encoder_decoder),
    )
    last = {item.row: item for item in found.items}
    return replace(found, items=tuple(last.values()))


def read_references(
    completions: Sequence[tuple[int, str]], table: LabelEvalTable, *, place: str
) -> list[frozenset[str]]:
    """Parse the right labels of numbered rows from their completions, as an answer is parsed.

    Raises:
        DataError: naming every row whose labels `eval.labels` does not list.
    """
    faulty = [(row, label_problem(completion, table)) for row, completion in completions]
    problems = [f"{place}:{row}: {problem}" for row, problem in faulty if problem is not None]
    if problems:
        raise DataError(problems)
    return [read_answer(completion, table).labels for _, completion in completions]


def label_sets_by_frequency(
    labels: metrics.Bools, names: Sequence[str]
) -> tuple[frozenset[str], ...]:
    """Return the distinct sets of labels, the commonest first, equals in a fixed order."""
    counted = Counter(tuple(map(bool, row)) for row in labels)
    by_count = sorted(counted, key=lambda row: (-counted[row], row))
    return tuple(
        frozenset(name for name, there in zip(names, row, strict=True) if there) for row in by_count
    )


def indicator_matrix(sets: Sequence[frozenset[str]], labels: Sequence[str]) -> metrics.Bools:
    """Return sets of labels as booleans [sets, labels]."""
    return np.array([[label in chosen for label in labels] for chosen in sets], dtype=bool)
