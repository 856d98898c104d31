"""Scoring and generation ask as training taught: same prompts, last answers, own words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import trl_templates

from trainer.config import TrainerConfig
from trainer.data.chat.encoder import words_of
from trainer.data.examples import load_examples
from trainer.results.generator import Generator
from trainer.scoring.eval_set import load_eval_set

MOODS = ["good", "bad"]
DIALOGUE = [
    {"role": "user", "content": "Is it late?"},
    {"role": "assistant", "content": "Let me see."},
    {"role": "user", "content": "And the mood?"},
    {"role": "assistant", "content": "good"},
]
OPENINGS = {
    "qwen3": "<think>\n\n</think>\n\n",
    "qwen3_5_think": "\n</think>\n\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse_glimmer": " to=user<|message|>",
    "nemotron_3_nano": "</think>",
    "deepseekv3": "\n</think>\n\n",
    "qwen2_5": "",
}
MODEL: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))


def config(tmp_path: Path) -> TrainerConfig:
    """A run that learns one conversation and scores its last answers."""
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"messages": DIALOGUE}) + "\n", encoding="utf-8"
    )
    return TrainerConfig.model_validate(
        {
            "model": {"id": "m"},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl", "messages": "messages"},
            "train": {"max_length": 9999},
            "eval": {"kind": "label", "labels": MOODS},
        }
    )


@pytest.mark.parametrize("base", OPENINGS)
def test_scoring_asks_for_the_last_answer_of_each_conversation(tmp_path: Path, base: str) -> None:
    """However many examples it is, it is one question, with the prompt that training had."""
    tokenizer, settings = trl_templates.tokenizer(base), config(tmp_path)
    found = load_eval_set(settings, tmp_path, MODEL, tokenizer)
    learnt = load_examples(settings.data, tmp_path / "rows.jsonl", tokenizer, max_length=9999)

    assert [item.completion for item in found.items] == ["good"]
    assert found.references == (frozenset({"good"}),)
    assert found.items[0] == learnt.items[-1]
    assert tokenizer.decode(found.items[0].opening) == OPENINGS[base]


@pytest.mark.parametrize("base", OPENINGS)
def test_generation_asks_with_the_prompt_of_training(tmp_path: Path, base: str) -> None:
    """The tokens are those before the last answer, and those that transformers would feed."""
    tokenizer, settings = trl_templates.tokenizer(base), config(tmp_path)
    learnt = load_examples(settings.data, tmp_path / "rows.jsonl", tokenizer, max_length=9999)
    prompt = (
        Generator(model=MODEL, tokenizer=tokenizer, config=settings).encode_chat(DIALOGUE[:3]).ids
    )

    assert prompt == learnt.items[-1].prompt_ids
    assert (
        list(prompt)
        == tokenizer.apply_chat_template(DIALOGUE[:3], add_generation_prompt=True)["input_ids"]
    )


@pytest.mark.parametrize("base", OPENINGS)
def test_the_words_of_an_answer_begin_behind_its_opening(tmp_path: Path, base: str) -> None:
    """Whether the model writes the opening as it was taught, reasons first, or writes none."""
    tokenizer = trl_templates.tokenizer(base)
    (item,) = load_eval_set(config(tmp_path), tmp_path, MODEL, tokenizer).items
    reasoned = OPENINGS[base].replace("\n</think>", "I think so.\n</think>")
    for written in (OPENINGS[base] + "good", reasoned + "good", "good"):
        tokens = tokenizer(written, add_special_tokens=False)["input_ids"]

        assert words_of(tokenizer, tokens, item.opening).strip() == "good"


@pytest.mark.parametrize(
    ("base", "ends"),
    [("gemma", ["<eos>", "<end_of_turn>"]), ("glm4moe", ["<eos>", "<|user|>"])],
)
def test_generation_stops_where_a_turn_ends(tmp_path: Path, base: str, ends: list[str]) -> None:
    """Beside EOS a template's own end of turn ends an answer."""
    tokenizer = trl_templates.tokenizer(base)
    found = load_eval_set(config(tmp_path), tmp_path, MODEL, tokenizer)

    assert tokenizer.convert_ids_to_tokens(list(found.stop_ids)) == ends
