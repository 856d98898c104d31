"""Bits per byte are about text alone, and only where the tokens give the text back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import trl_templates
from support.tokenizers_built import build

from trainer.data.codec import Codec
from trainer.data.examples import load_examples
from trainer.data_table import DataTable
from trainer.scoring.text_targets import TextTargets, text_targets

PAIRS = {"prompt": "{question} = ", "completion": "{answer}"}
TEXTS = {"text": "answer"}


def targets_of(
    tokenizer: Any, path: Path, table: dict[str, Any], *rows: dict[str, Any], most: int = 200
) -> list[TextTargets]:
    """What the targets of some rows are to a tokenizer."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataTable.model_validate({"train": str(path), **table})
    codec = Codec.from_tokenizer(tokenizer, max_length=most, seq2seq=False)
    control = {*codec.special_tokens.values(), codec.eos_id}
    items = load_examples(data, path, tokenizer, max_length=most).items
    return [text_targets(item, control=control, decode=tokenizer.decode) for item in items]


@pytest.mark.parametrize("answer", ["positive", " nice", "señor 你好", "a\nb  c", "👍🏽!"])
def test_the_bytes_are_those_of_the_answer(answer: str, tmp_path: Path) -> None:
    """A tokenizer that keeps every character has the answer's own bytes, without its end token."""
    row = {"question": "q", "answer": answer}
    (found,) = targets_of(build(), tmp_path / "rows.jsonl", PAIRS, row)

    assert found.bytes == len(answer.encode())
    assert found.are_text[-1] is False
    assert all(found.are_text[:-1])


@pytest.mark.parametrize(
    ("kind", "answer"), [("unigram", "a\nb Ж"), ("wordpiece", "Nice  page"), ("wordpiece", "Ж")]
)
def test_a_tokenizer_that_loses_characters_has_no_bytes(
    kind: str, answer: str, tmp_path: Path
) -> None:
    """Where decoding does not give the answer back, its bytes are not known."""
    row = {"question": "q", "answer": answer}
    (found,) = targets_of(build(kind), tmp_path / "rows.jsonl", PAIRS, row)

    assert found.bytes is None


@pytest.mark.parametrize("bos", [True, False])
def test_the_first_token_of_a_text_counts_where_it_is_predicted(
    tmp_path: Path, *, bos: bool
) -> None:
    """Without a BOS nothing predicts a text's first token, so its bytes do not count."""
    tokenizer = build(bos=bos, frame=bos)
    text = "thank you 你好"
    first = len(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:1]))
    (found,) = targets_of(tokenizer, tmp_path / "rows.jsonl", TEXTS, {"answer": text})

    assert found.bytes == len(text.encode()) - (0 if bos else first)


@pytest.mark.parametrize("most", range(9, 20))
def test_a_text_that_is_cut_counts_the_characters_that_are_whole(most: int, tmp_path: Path) -> None:
    """Wherever a row is cut, also through a character, bytes and tokens are of the same text."""
    text = "a你好 👍🏽 naïve"
    (found,) = targets_of(build(), tmp_path / "rows.jsonl", TEXTS, {"answer": text}, most=most)
    tokenizer = build()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    counted = ids[: sum(found.are_text)]

    assert found.bytes == len(tokenizer.decode(counted).encode())
    assert text.startswith(tokenizer.decode(counted))
    assert min(most - 1, len(ids)) - len(counted) <= 3


def test_with_the_loss_on_every_token_the_prompt_is_text_too(tmp_path: Path) -> None:
    """The bytes are then those of prompt and answer."""
    row = {"question": "señor", "answer": "你好"}
    table = PAIRS | {"loss_on": "all"}
    (found,) = targets_of(build(), tmp_path / "rows.jsonl", table, row)

    assert found.bytes == len("señor = 你好".encode())


@pytest.mark.parametrize("base", ["qwen3", "qwen2_5", "gptoss", "llama3"])
def test_of_a_conversation_all_answers_count(base: str, tmp_path: Path) -> None:
    """The bytes are those of the answers as the template writes them, without its marks."""
    answers = ["Let me see, señor.", "good\n\n你好"]
    turns = [{"role": "user", "content": "Is it late?"}]
    for answer in answers:
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    row = {"messages": turns[:-1]}
    table = {"messages": "messages"}
    found = targets_of(trl_templates.tokenizer(base), tmp_path / "rows.jsonl", table, row, most=999)
    sizes = [one.bytes for one in found]
    words = sum(len(answer.encode()) for answer in answers)

    assert None not in sizes
    assert (
        words <= sum(size or 0 for size in sizes) <= words + 2 * len("<think>\n\n</think>\n\nfinal")
    )
