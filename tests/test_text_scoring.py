"""Answers in words, in conversations and of options are scored as the model really gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.models import gpt2, make_t5
from support.scored_answers import CHAT_TEMPLATE, COLOURS, asks, request_of, scored, settings, turns

from trainer.errors import DataError
from trainer.eval_tables.text import TextEvalTable
from trainer.scoring import chat, text
from trainer.scoring.answer_baselines import commonest_answer, nearest_answers
from trainer.scoring.constrained import Decoder, eval_mode
from trainer.scoring.evaluate import GAINS
from trainer.scoring.measures.all_measures import make_measures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small decoder-only model with random weights."""
    from transformers import AutoModelForCausalLM

    directory = tiny.make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(str(directory))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Its tokenizer, with a chat template."""
    made = tiny.make_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_text_is_scored_as_the_model_writes_it(
    kind: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Each row has the greedy answer of its prompt alone, and figures that follow from those."""
    used = model if kind == "llama" else make_t5().eval()
    table = {"kind": "text", "measures": ["tokens_f1", "exact", "chrf"], "tokens_max": 6}
    config = settings(tmp_path, asks(9), table)
    found = scored(tmp_path, config, used, tokenizer)
    measures = make_measures(TextEvalTable.model_validate(table), ())

    for one in found.details["documents"]:
        ids = tokenizer(one["prompt"])["input_ids"]
        made = used.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
            do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=3,
        )[0].tolist()  # fmt: skip
        new = made[1:] if kind == "t5" else made[len(ids) :]
        assert one["free"] == tokenizer.decode(new, skip_special_tokens=True)
        for name, measure in measures.items():
            assert one["figures"][name] == measure.compare(one["free"], one["gold"]).score
        assert one["score"] == one["figures"]["tokens_f1"]
    assert (found.metric, found.n, found.decoding) == ("tokens_f1", 9, "free")
    assert found.value == found.details["figures"]["tokens_f1"]["value"]
    assert list(found.details["figures"]) == ["tokens_f1", "exact", "chrf"]
    assert found.loss is not None
    assert json.loads((tmp_path / "eval-before.json").read_text()) == json.loads(
        json.dumps(found.__dict__)
    )


def test_an_answer_may_be_as_long_as_the_longest_right_one(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Without `tokens_max` a few tokens more are allowed, and never more than 512."""
    rows = [*asks(2), {"ask": "?", "answer": "z" * 30}]
    for answer, most in (("z" * 30, 30 + 1 + 8), ("z" * 600, 512)):
        rows[-1]["answer"] = answer
        table = {"kind": "text", "measures": ["exact"], "baselines": False}
        config = settings(tmp_path, rows, table)
        longer = config.model_copy(
            update={"train": config.train.model_copy(update={"max_length": 1000})}
        )
        request = request_of(tmp_path, longer, model, tokenizer)
        scored_by = longer.scored
        assert isinstance(scored_by, TextEvalTable)
        assert text.load_answer_set(request).tokens_max(scored_by) == most


def test_an_answer_has_places_behind_its_prompt(tmp_path: Path, tokenizer: Any) -> None:
    """A base of 64 places answers a prompt of 60 tokens, of which the middle is left out."""
    small = gpt2(tmp_path / "gpt2").eval()
    rows = [*asks(2), {"ask": "y" * 58, "answer": "red"}]
    table = {"kind": "text", "measures": ["exact"], "tokens_max": 20, "baselines": False}
    found = scored(tmp_path, settings(tmp_path, rows, table), small, tokenizer)
    generous = {**table, "tokens_max": 4000}
    most = scored(tmp_path, settings(tmp_path, rows, generous), small, tokenizer)

    assert (found.details["tokens_max"], found.details["prompts_shortened"]) == (20, 1)
    assert (most.details["tokens_max"], most.details["prompts_shortened"]) == (32, 1)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("kind", ["text", "chat", "choice"])
def test_a_killed_scoring_goes_on_where_it_was(
    kind: str, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before a kill is not answered again, and the result is the same."""
    rows: list[dict[str, Any]] = list(asks(130))
    table: dict[str, Any] = {"kind": kind, "baselines": False}
    data: dict[str, Any] = {}
    if kind == "choice":
        table["options"] = list(COLOURS)
    else:
        table |= {"measures": ["exact", "chrf"], "tokens_max": 3, "rows": 500}
    if kind == "chat":
        data["messages"] = "talk"
        rows = [{"talk": turns(row["ask"], row["answer"])} for row in asks(130)]
    config = settings(tmp_path, rows, table, **data)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    passes: list[int] = []
    limits = [10**6]
    forward = type(model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(len(kwargs["input_ids"]))
        if len(passes) > limits[0]:
            raise Killed
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    whole = scored(tmp_path / "whole", config, model, tokenizer)
    needed = len(passes)
    passes.clear()
    limits[0] = needed // 3
    with pytest.raises(Killed):
        scored(tmp_path / "killed", config, model, tokenizer)
    passes.clear()
    limits[0] = 10**6
    rest = scored(tmp_path / "killed", config, model, tokenizer)

    assert replace(rest, seconds=0, loss=None) == replace(whole, seconds=0, loss=None)
    assert len(passes) < needed


def test_each_answer_of_a_conversation_follows_the_true_turns(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """The prompt of a later answer has the right earlier ones, never the model's own."""
    talks = [turns("hi", "hello", "how?", "so", "why?", "thus"), turns("one", "two")]
    config = settings(
        tmp_path, [{"talk": one} for one in talks],
        {"kind": "chat", "measures": ["exact", "tokens_f1"], "tokens_max": 4}, messages="talk",
    )  # fmt: skip
    found = scored(tmp_path, config, model, tokenizer)
    first, second = found.details["documents"]

    assert (found.n, found.details["answers"]) == (2, 4)
    assert [one["gold"] for one in first["answers"]] == ["hello", "so", "thus"]
    assert first["answers"][2]["prompt"].startswith(
        "[user] hi</s>[assistant] hello</s>[user] how?</s>[assistant] so</s>[user] why?</s>"
    )
    for one in (*first["answers"], *second["answers"]):
        ids = tokenizer(one["prompt"])["input_ids"]
        decoder = Decoder(model, eos_ids=[1], pad_id=3)
        with eval_mode(model):
            written = decoder.generate(decoder.prefill([ids]), tokens_max=4)[0].tokens
        assert one["free"] == tokenizer.decode(written, skip_special_tokens=True)
    assert first["gold"] == "[1] hello\n\n[2] so\n\n[3] thus"
    assert second["gold"] == "two"
    assert first["statistics"]["exact"][1] == 3


def test_turns_under_headings_are_scored_alike(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Without a chat template each prompt ends with the heading under which the answer stands."""
    rows = [{"talk": turns("hi", "hello", "how?", "so")}]
    table = {"kind": "chat", "measures": ["exact"], "baselines": False}
    config = settings(tmp_path, rows, table, messages="talk", chat="markers")
    found = chat.load_answer_set(request_of(tmp_path, config, model, tokenizer))
    first, second = (item.prompt for item in found.items)

    assert second.startswith(f"{first}hello")
    assert second.rstrip().endswith(first.splitlines()[-1].strip())
    assert found.prompts == ("hi", "how?")
    assert found.stop_ids == (1,)


def test_only_answers_that_are_learnt_are_scored(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Not a greeting before anybody spoke, not what says so, and with `answers: last` the last."""
    messages = [
        {"role": "assistant", "content": "welcome"},
        *turns("hi", "hello", "how?", "so"),
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "skipped", "weight": 0},
        {"role": "user", "content": "then?"},
        {"role": "assistant", "content": "thus"},
    ]
    for answers, right in (("all", ["hello", "so", "thus"]), ("last", ["thus"])):
        config = settings(
            tmp_path, [{"talk": messages}], {"kind": "chat", "measures": ["exact"]},
            messages="talk", answers=answers,
        )  # fmt: skip
        found = chat.load_answer_set(request_of(tmp_path, config, model, tokenizer))
        assert list(found.references) == right
        assert found.documents == [0] * len(right)


def test_baselines_answer_without_a_model() -> None:
    """The commonest answer, and that of the training row with the most like prompt."""
    rows = [("is the sky blue", "yes"), ("is grass red", "no"), ("is snow red", "no")]

    assert commonest_answer(rows) == "no"
    assert commonest_answer([]) == ""
    assert nearest_answers(rows, ["the blue sky", "a red grass", "完全"]) == ["yes", "no", "no"]
    assert nearest_answers([("1", "a"), ("2", "b")], ["2", "1"]) == ["b", "a"]
    assert nearest_answers([("", "a")], ["x"]) == ["a"]
    assert nearest_answers([("!!", "a"), ("??", "b")], ["?"]) == ["b"]
    assert nearest_answers([("今天天气", "a"), ("我的猫", "b")], ["一只猫", "天"]) == ["b", "a"]


def test_every_baseline_has_the_figures_of_the_model(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """All of them are measured alike, on the same rows; a nearest row that is the same is right."""
    table = {"kind": "text", "measures": ["exact", "chrf"], "tokens_max": 3, "shots": 2}
    config = settings(tmp_path, asks(6), table)
    found = scored(tmp_path, config, model, tokenizer)
    baselines = found.details["baselines"]
    after = scored(tmp_path, config, model, tokenizer, stage="after")

    assert list(baselines) == ["commonest", "empty", "nearest", "few_shot"]
    assert all(set(one["figures"]) == {"exact", "chrf"} for one in baselines.values())
    assert baselines["nearest"]["figures"]["exact"]["value"] == 1
    assert baselines["empty"]["figures"]["chrf"]["value"] == 0
    assert baselines["commonest"]["figures"]["exact"]["value"] == pytest.approx(1 / 3)
    assert "baselines" not in after.details
    assert after.details["gain"]["value"] == 0
    assert set(after.details["gain"]["figures"]) == {"exact", "chrf"}


def test_a_gain_needs_the_same_rows_and_headline(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Results on other rows, or by another headline, are not subtracted."""
    table = {"kind": "text", "measures": ["exact", "chrf"], "tokens_max": 3, "baselines": False}
    found = scored(tmp_path, settings(tmp_path, asks(6), table), model, tokenizer)
    fewer = scored(tmp_path, settings(tmp_path, asks(5), table), model, tokenizer)
    gain = GAINS["text"]

    same = gain(found, found)
    assert same is not None
    assert same["low"] < same["value"] == 0 < same["high"]
    assert same["figures"]["chrf"] == {"value": 0, "low": 0, "high": 0}
    assert gain(found, fewer) is None
    assert gain(found, replace(found, metric="chrf")) is None


@pytest.mark.parametrize(
    ("rows", "table", "message"),
    [
        (
            [{"ask": "x", "answer": "plain"}],
            {"measures": ["json"]},
            "eval.jsonl:1: the right answer is not JSON",
        ),
        (
            [{"ask": "x", "answer": "none"}],
            {"measures": ["number"]},
            "eval.jsonl:1: no right answer has a number",
        ),
        (
            [{"ask": "x", "answer": "pink"}],
            {"options": ["red", "blue"]},
            "eval.jsonl:1: the right answer 'pink'",
        ),
        (
            [{"ask": "x", "answer": "red"}, {"ask": "y", "answer": "B"}],
            {"options": ["red", "blue"]},
            "eval.jsonl:2: the right answer is a letter, and in row 1 it is the option itself",
        ),
    ],
)
def test_right_answers_of_another_kind_stop_the_scoring(
    rows: list[dict[str, Any]], table: dict[str, Any], message: str, model: Any, tmp_path: Path
) -> None:
    """The error names file, row and what to do, before anything is generated."""
    with pytest.raises(DataError) as caught:
        scored(tmp_path, settings(tmp_path, rows, table), model, tiny.make_tokenizer())

    assert message in str(caught.value)
