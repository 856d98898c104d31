"""A choice among options is the one that the model finds most likely, by three ways of counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.scored_answers import COLOURS, scored, settings

from trainer.data.codec import Example
from trainer.errors import DataError
from trainer.eval_tables.choice import ChoiceEvalTable
from trainer.scoring import choice_set
from trainer.scoring.options import OptionsError, read_options


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small decoder-only model with random weights."""
    from transformers import AutoModelForCausalLM

    directory = tiny.make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(str(directory))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Its tokenizer."""
    return tiny.make_tokenizer()


def log_likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The log-probability of an answer behind a prompt, in a plain loop over its tokens."""
    total = 0.0
    for at, token in enumerate(answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer[:at]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
    return total


def test_options_are_scored_by_their_likelihood(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Sums, sums per byte and letters are those of a plain loop, with no end token behind them."""
    rows = [
        {"ask": f"row {at}", "answer": ("über", "no", "maybe so")[at % 3],
         "ways": ["über", "no", "maybe so"]}
        for at in range(5)
    ]  # fmt: skip
    config = settings(tmp_path, rows, {"options": "ways"}, completion=" {answer}")
    found = scored(tmp_path, config, model, tokenizer)

    assert (found.kind, found.metric, found.decoding) == ("choice", "accuracy", "sum")
    for one in found.details["documents"]:
        prompt = tokenizer(one["prompt"])["input_ids"]
        listed = tokenizer("A. über\nB. no\nC. maybe so\n\n" + one["prompt"])["input_ids"]
        words = [f" {each}" for each in ("über", "no", "maybe so")]
        sums = [log_likelihood(model, prompt, tokenizer(each)["input_ids"]) for each in words]
        each_byte = [
            total / len(word.strip().encode()) for total, word in zip(sums, words, strict=True)
        ]
        letters = [
            log_likelihood(model, listed, tokenizer(f" {each}")["input_ids"]) for each in "ABC"
        ]
        for name, expected in (("sum", sums), ("per_byte", each_byte), ("letter", letters)):
            assert one["likelihoods"][name] == pytest.approx(expected, abs=1e-4)
            assert one["chosen"][name] == expected.index(max(expected))
        assert one["score"] == float(one["chosen"]["sum"] == one["right"])
    figures = found.details["figures"]
    right = sum(one["score"] for one in found.details["documents"])
    assert figures["accuracy"] == figures["sum"]
    assert found.value == right / 5
    assert found.low < found.value < found.high or found.value in (0, 1)


def test_letters_in_the_rows_are_the_headline(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Where right answers are letters, the prompt is left as it is and the letter counts."""
    rows = [
        {"ask": "which", "answer": "B", "ways": {"text": ["sun", "rain"], "label": ["A", "B"]}},
        {"ask": "what", "answer": "A", "ways": {"text": ["wind", "sea"], "label": ["A", "B"]}},
    ]
    config = settings(tmp_path, rows, {"kind": "choice", "options": "ways"})
    found = scored(tmp_path, config, model, tokenizer)
    one = found.details["documents"][0]
    prompt = tokenizer(one["prompt"])["input_ids"]

    assert (found.decoding, found.details["by_letter"]) == ("letter", True)
    assert one["options"] == ["sun", "rain"]
    assert (one["gold"], one["right"]) == ("B", 1)
    assert one["likelihoods"]["letter"] == pytest.approx(
        [log_likelihood(model, prompt, tokenizer(each)["input_ids"]) for each in "AB"], abs=1e-4
    )
    assert found.details["baselines"]["chance"]["figures"]["accuracy"]["value"] == 0.5


def test_an_option_that_begins_another_does_not_always_win(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """`1` is part of `10`, so the options of such a row are scored with their end."""
    rows = [{"ask": "number", "answer": "10"}, {"ask": "other", "answer": "7"}]
    table = {"kind": "choice", "options": ["1", "10", "7"]}
    found = scored(tmp_path, settings(tmp_path, rows, table), model, tokenizer)
    one = found.details["documents"][0]
    prompt = tokenizer(one["prompt"])["input_ids"]
    ended = [[*tokenizer(each)["input_ids"], 1] for each in ("1", "10", "7")]

    assert found.details["with_end"] == 2
    assert one["likelihoods"]["sum"] == pytest.approx(
        [log_likelihood(model, prompt, each) for each in ended], abs=1e-4
    )


def test_equal_likelihoods_go_to_the_first_and_are_counted(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """A model that finds all tokens alike ties on every letter, and takes the first."""
    rows = [{"ask": "x", "answer": one} for one in ("red", "green", "blue", "red")]
    table = {"kind": "choice", "options": list(COLOURS), "by": "letter"}
    config = settings(tmp_path, rows, table)
    with torch.no_grad():
        weights = model.lm_head.weight.clone()
        model.lm_head.weight.zero_()
    try:
        found = scored(tmp_path, config, model, tokenizer)
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(weights)

    assert found.details["ties"]["letter"] == 4
    assert [one["chosen"]["letter"] for one in found.details["documents"]] == [0] * 4
    assert found.value == 0.5
    assert found.details["figures"]["letter"]["value"] == 0.5


@pytest.mark.parametrize(
    ("fields", "answer", "options", "expected"),
    [
        ({"ways": ["a", "b"]}, "b", "ways", (1, False)),
        ({"ways": ["a", "b"]}, "B", "ways", (1, True)),
        ({"ways": '["a", "b"]'}, " b ", "ways", (1, False)),
        ({"ways": {"text": ["x", "y"], "label": ["1", "2"]}}, "2", "ways", (1, True)),
        ({"ways": {"A": "x", "B": "y"}}, "B", "ways", (1, True)),
        ({"ways": {"A": "x", "B": "y"}}, "x", "ways", (0, False)),
        ({"ways": [1, 2.5, True]}, "2.5", "ways", (1, False)),
        ({"deep": {"ways": ["a", "b"]}}, "a", "deep.ways", (0, False)),
        ({}, "no", ["yes", "no"], (1, False)),
    ],
)
def test_options_are_read_as_data_sets_write_them(
    fields: dict[str, Any], answer: str, options: Any, expected: tuple[int, bool]
) -> None:
    """A list, a list with its letters, an object by letter; of texts, numbers and truth values."""
    found = read_options(fields, answer, ChoiceEvalTable(options=options), None)

    assert (found.right, found.by_letter) == expected


@pytest.mark.parametrize(
    ("fields", "answer", "message"),
    [
        ({"ways": ["a", "b"]}, "c", "'c' is not among the options ('a', 'b')"),
        ({"ways": ["a", "b"]}, "C", "nor one of their letters (A to B)"),
        ({"ways": ["a"]}, "a", "no list of 2 to 26 options"),
        ({"ways": "a, b"}, "a", "no list of 2 to 26 options"),
        ({"ways": None}, "a", "no list of 2 to 26 options"),
        ({"ways": ["a", "a "]}, "a", "two of the options are the same"),
        ({"ways": ["a", ""]}, "a", "one of the options in `ways` is empty"),
        ({"ways": ["a", {"b": 1}]}, "a", "`ways` is a dict"),
        ({"other": 1}, "a", "`eval.options`: no field `ways`"),
    ],
)
def test_a_row_whose_options_cannot_be_used_says_why(
    fields: dict[str, Any], answer: str, message: str
) -> None:
    """The options there are, the answer, or the field are in the message."""
    with pytest.raises(OptionsError) as caught:
        read_options(fields, answer, ChoiceEvalTable(options="ways"), None)

    assert message in str(caught.value)


def test_options_of_the_same_tokens_are_named(tokenizer: Any, tmp_path: Path) -> None:
    """Two texts of the same tokens have the same likelihood, so that no choice is possible."""
    item = Example((1, 2), (-100, 2), "p", "a", 3, 1)
    options = read_options({"w": ["a", "b"]}, "a", ChoiceEvalTable(options="w"), None)

    with pytest.raises(DataError, match="file:3: the options 'a' and 'b' are the same tokens"):
        choice_set.require_apart([item], [options], [[(5,), (5,)]], "file")
