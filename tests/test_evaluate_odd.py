"""A model without numbers, or labels that are no words to it, get no score that looks fine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.tiny import evaluation, make_model, make_tokenizer

from trainer.errors import ConfigError
from trainer.eval_tables.labels import LabelEvalTable
from trainer.pages.report import as_page
from trainer.pages.run_files import build_report
from trainer.scoring.answers import label_problem, read_answer, require_apart, write_answer
from trainer.scoring.baselines import baselines
from trainer.scoring.eval_set import LabelledTexts
from trainer.scoring.evaluate import run


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model, whole."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(make_model(tmp_path_factory.mktemp("model"))))


def spoilt(model: Any) -> Any:
    """A copy of the model that gives no numbers once it has read the byte `K`."""
    broken = copy.deepcopy(model)
    rows = broken.get_input_embeddings().weight
    with torch.no_grad():
        rows[make_tokenizer().convert_tokens_to_ids("K")] = float("nan")
    return broken


def test_answers_that_are_no_numbers_are_mistakes_and_are_counted(
    llama: Any, tmp_path: Path
) -> None:
    """A row on which the model overflows is wrong, not the first label; the file stays JSON."""
    run_dir, config = evaluation(tmp_path)
    rows = run_dir / "eval.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0]) | {"text": "K"}
    rows.write_text("\n".join([json.dumps(row), *lines[1:]]), encoding="utf-8")
    tokenizer = make_tokenizer()
    found = run(
        run_dir, config, spoilt(llama), tokenizer, stage="after", on_progress=lambda *_: None
    )
    text = (run_dir / "eval-after.json").read_text(encoding="utf-8")

    assert found.details["not_numbers"] == 1
    assert found.details["documents"][0]["bound"] == []
    assert "NaN" not in text
    assert "1 documents the model" in as_page(build_report(run_dir), run_dir, name="x")


def test_a_model_without_a_single_number_is_refused(llama: Any, tmp_path: Path) -> None:
    """If every answer overflows the run ends with what to change, and nothing is written."""
    run_dir, config = evaluation(tmp_path)
    broken = copy.deepcopy(llama)
    torch.nn.init.constant_(broken.get_input_embeddings().weight, float("nan"))
    with pytest.raises(ConfigError, match="no answer of the model"):
        run(run_dir, config, broken, make_tokenizer(), stage="before", on_progress=lambda *_: None)

    assert not (run_dir / "eval-before.json").exists()


def test_labels_with_the_same_tokens_are_named() -> None:
    """Two labels of unknown letters are the same tokens, so no model could choose between them."""
    require_apart([[2], [5]], ["ja", "nein"])
    with pytest.raises(ConfigError, match="writes 'ja' and 'nein' with the same tokens"):
        require_apart([[2], [2]], ["ja", "nein"])


@pytest.mark.parametrize(
    ("kind", "label"),
    [("multilabel", "a, b"), ("multilabel", "a;b"), ("label", " a"), ("label", "a\nb"),
     ("label", "a\u2028b"), ("multilabel", "other."), ("multilabel", "[Other]"),
     ("multilabel", '"N/A"'), ("multilabel", ".")],
)  # fmt: skip
def test_a_label_that_no_answer_could_be_read_as_is_refused(kind: str, label: str) -> None:
    """A comma parts labels, a line ends one, and marks around one of a set say nothing."""
    with pytest.raises(ValidationError, match="could not be read back"):
        LabelEvalTable.model_validate({"kind": kind, "labels": ["other", label]})


def test_a_word_for_no_label_is_one_word_of_a_set() -> None:
    """What stands for no label is read back, too; for exactly one label it plays no part."""
    with pytest.raises(ValidationError, match="could not be read back"):
        LabelEvalTable(kind="multilabel", labels=["a"], none="[]")

    assert LabelEvalTable(kind="label", labels=["a"], none="[]").none == "[]"


@pytest.mark.parametrize(
    "texts", [("1", "2", "1", "2"), ("\U0001f600", "?!", "\U0001f600", "?!"), ("", "", "", "")]
)
@pytest.mark.parametrize("single", [True, False])
def test_texts_without_words_have_baselines_too(texts: tuple[str, ...], *, single: bool) -> None:
    """Digits and faces are told apart by their characters; where nothing is, all are the same."""
    training = LabelledTexts(texts=texts, labels=np.array([[True, False], [False, True]] * 2))
    found = baselines(training, training, single=single, resamples=1000)
    right = found["tfidf_regression"]["figures"]["exact_match"]["value"]

    assert right == (1.0 if texts[0] else 0.5)


@pytest.mark.parametrize("label", ["etc.", "[x]", "'quoted'", "U.S.", "C++", "new york"])
@pytest.mark.parametrize("kind", ["label", "multilabel"])
def test_labels_with_signs_are_read_back(kind: str, label: str) -> None:
    """What is written for a label is read as that label, whatever signs it begins or ends with."""
    table = LabelEvalTable.model_validate({"kind": kind, "labels": ["other", label]})
    answer = read_answer(write_answer([label], table), table)

    assert (answer.labels, answer.unknown, answer.readable) == (frozenset([label]), (), True)
    assert label_problem(label, table) is None
