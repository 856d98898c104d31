"""What is right, read from the rows with the very eyes that read a model's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import EvalTable, TrainerConfig
from trainer.data.examples import load_examples, load_texts
from trainer.data.rows import DataError
from trainer.rundir.layout import resolve
from trainer.scoring import metrics
from trainer.scoring.answers import label_problem, read_answer
from trainer.scoring.baselines import LabelledTexts


def read_training_texts(
    config: TrainerConfig, run_dir: Path, model: Any, tokenizer: Any
) -> LabelledTexts:
    """Read what is learnt as texts and labels, so that a wrong label is told before training."""
    assert config.eval is not None
    path = resolve(run_dir, config.data.train)
    if config.data.messages is None:
        rows = load_texts(config.data, path)
    else:  # only the tokenizer's template knows where the last answer of a conversation begins
        seq2seq = bool(model.config.is_encoder_decoder)
        length = config.train.max_length
        found = load_examples(config.data, path, tokenizer, max_length=length, seq2seq=seq2seq)
        rows = [(item.row, item.prompt, item.completion) for item in found.items]
    written = [completion for _, _, completion in rows]
    references = read_references(
        [(number, completion) for number, _, completion in rows],
        config.eval,
        place=config.data.train,
    )
    return LabelledTexts(
        texts=[prompt for _, prompt, _ in rows],
        labels=indicator_matrix(references, config.eval.labels),
        written=written,
    )


def read_references(
    completions: Sequence[tuple[int, str]], table: EvalTable, *, place: str
) -> list[frozenset[str]]:
    """Return the right labels of numbered rows, read from completions as an answer would be.

    Raises:
        DataError: naming every row whose labels `eval.labels` does not list.
    """
    references, problems = [], []
    for row, completion in completions:
        fault = label_problem(completion, table)
        if fault is not None:
            problems.append(f"{place}:{row}: {fault}")
        references.append(read_answer(completion, table).labels)
    if problems:
        raise DataError(problems)
    return references


def label_sets_by_frequency(
    labels: metrics.Bools, names: Sequence[str]
) -> tuple[frozenset[str], ...]:
    """Return the sets of labels that were learnt, the commonest first, equals in a fixed order."""
    counted = Counter(tuple(map(bool, row)) for row in labels)
    order = sorted(counted, key=lambda row: (-counted[row], row))
    return tuple(
        frozenset(name for name, there in zip(names, row, strict=True) if there) for row in order
    )


def indicator_matrix(sets: Sequence[frozenset[str]], labels: Sequence[str]) -> metrics.Bools:
    """Return sets of labels as booleans [sets, labels]."""
    return np.array([[label in chosen for label in labels] for chosen in sets], dtype=bool)
