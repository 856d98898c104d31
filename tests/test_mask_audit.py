"""A mask audit: with every tokenizer that can be built, in every row, the mask is what is said.

One BOS where the tokenizer or the template puts one, every answer whole, every end supervised, and
nothing else learnt: counted over all rows, and all of them must hold.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.tokenizers_built import KINDS, build

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.examples import load_examples
from trainer.data_table import DataTable
from trainer.errors import DataError

FRAMES = list(itertools.product(KINDS, (True, False), (True, False), (True, False)))
WAYS = ("template", "template with BOS", "markers", "chat", "chat with BOS", "encoder-decoder")
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TEXTS = ("you are nice", "a </s> <s> [SEP] [CLS] in it", "so " * 150, "¡señor! 你好", "x\n\n  y")
ANSWERS = ("positive", "toxic, obscene", "N/A", "    result = df.sum()\n")
LENGTH = 100


def data_table(**fields: str) -> DataTable:
    """A data table of these fields."""
    return DataTable.model_validate({"train": "rows.jsonl", **fields})


def load(way: str, tokenizer: Any, path: Path) -> tuple[list[list[str]], Sequence[Example]]:
    """Write rows for this way of training, and return the answers of each row and its example."""
    table = data_table(prompt="Tweet: {text}\nMood: ", completion="{label}")
    answers = [[answer] for _ in TEXTS for answer in ANSWERS]
    rows: list[dict[str, Any]] = [
        {"text": text, "label": answer} for text in TEXTS for answer in ANSWERS
    ]
    if way == "template with BOS":
        table = data_table(
            prompt=f"{tokenizer.bos_token}{table.prompt}", completion=table.completion
        )
        rows = [row | {"text": harmless(row["text"])} for row in rows]
    elif way in {"markers", "chat", "chat with BOS"}:
        table = data_table(messages="messages", chat="markers" if way == "markers" else "template")
        begin = "{{ bos_token }}" if way == "chat with BOS" else ""
        tokenizer.chat_template = begin + CHAT
        clean = str if way == "markers" else harmless
        rows = [
            {"messages": list(messages(clean(text), answer))}
            for text in TEXTS
            for answer in ANSWERS
        ]
        answers = [["so", answer] for _ in TEXTS for answer in ANSWERS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seq2seq = way == "encoder-decoder"
    found = load_examples(table, path, tokenizer, max_length=LENGTH, seq2seq=seq2seq)
    return answers, found.items


def messages(text: str, answer: str) -> Iterator[dict[str, str]]:
    """A conversation of two exchanges, the second of which asks about the text."""
    for role, content in (("system", "be kind"), ("user", "hi"), ("assistant", "so"),
                          ("user", text), ("assistant", answer)):  # fmt: skip
        yield {"role": role, "content": content}


def harmless(text: str) -> str:
    """A text without control tokens, which rows may not bring into a template of such."""
    for token in ("</s>", "<s>", "[SEP]", "[CLS]"):
        text = text.replace(token, "")
    return text


def stretches(item: Example) -> list[list[int]]:
    """The runs of tokens that are learnt."""
    found: list[list[int]] = [[]]
    for label in item.labels:
        if label == NOT_TRAINED:
            found.append([])
        else:
            found[-1].append(label)
    return [stretch for stretch in found if stretch]


def faults(way: str, tokenizer: Any, answers: list[str], item: Example) -> list[str]:
    """Whatever is wrong with one row."""
    wrong = []
    first = tokenizer("a")["input_ids"][0]
    framed = first != tokenizer("a", add_special_tokens=False)["input_ids"][0]
    if framed or way.endswith("BOS"):
        begin = first if framed else tokenizer.bos_token_id
        if [at for at, token in enumerate(item.input_ids) if token == begin] != [0]:
            wrong.append("not one BOS, at the beginning")
    if len(item.input_ids) > LENGTH:
        wrong.append("too long")
    runs = stretches(item)
    if way == "encoder-decoder":
        runs = [list(item.labels)]
    elif list(item.input_ids[-len(runs[-1]) :]) != runs[-1]:
        wrong.append("the last answer does not end the row")
    whole = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for answer in answers
    ]
    if runs != whole[-len(runs) :]:
        wrong.append("an answer or its end is not wholly learnt, or more is")
    return wrong


@pytest.mark.parametrize("way", WAYS)
def test_all_rows_of_all_tokenizers_pass_the_audit(way: str, tmp_path: Path) -> None:
    """BPE, Unigram and WordPiece, with and without BOS, padding and framing: not one row fails."""
    audited, failed = 0, []
    for kind, bos, pad, frame in FRAMES:
        if way.endswith("BOS") and not bos:
            continue  # there is none that a template could write
        tokenizer = build(kind, bos=bos, pad=pad, frame=frame)
        answers, items = load(way, tokenizer, tmp_path / "rows.jsonl")
        for number, (written, item) in enumerate(zip(answers, items, strict=True)):
            audited += 1
            found = faults(way, tokenizer, written, item)
            failed += [
                f"{kind} bos={bos} pad={pad} frame={frame} row {number}: {one}" for one in found
            ]

    assert failed == []
    assert audited == len(TEXTS) * len(ANSWERS) * (12 if way.endswith("BOS") else 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_an_end_is_refused_in_every_way(kind: str, tmp_path: Path) -> None:
    """No EOS, no training: the model could not learn to stop."""
    for way in ("template", "markers", "chat", "encoder-decoder"):
        with pytest.raises(DataError, match="no end-of-sequence token"):
            load(way, build(kind, eos=False), tmp_path / "rows.jsonl")
