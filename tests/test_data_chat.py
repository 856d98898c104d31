"""Conversations: every answer is learnt with its end, and nothing that people said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tokenizers_built import KINDS, build

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.examples import load_examples
from trainer.data_table import DataTable
from trainer.errors import DataError

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CONVERSATION = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "are you nice"},
    {"role": "assistant", "content": "very"},
    {"role": "user", "content": "why </s> so"},
    {"role": "assistant", "content": "I like it"},
]


def load(
    tmp_path: Path, tokenizer: Any, messages: Any, *, chat: str, max_length: int = 256
) -> Example:
    """Write one conversation and load it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    table = DataTable.model_validate({"train": "a", "messages": "messages", "chat": chat})
    return load_examples(table, path, tokenizer, max_length=max_length).items[0]


def learnt(tokenizer: Any, item: Example) -> list[str]:
    """The stretches of tokens that are learnt, as text."""
    stretches: list[list[int]] = [[]]
    for label in item.labels:
        if label == NOT_TRAINED:
            stretches.append([])
        else:
            stretches[-1].append(label)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_markers_are_written_as_published(tmp_path: Path) -> None:
    """The turns stand under their headings, each answer ends with EOS, and only answers count."""
    tokenizer = build(bos=True)
    item = load(tmp_path, tokenizer, CONVERSATION, chat="markers")

    assert learnt(tokenizer, item) == ["very</s>", "I like it</s>"]
    assert tokenizer.decode(item.input_ids) == (
        "<s>be kind\n\n### HUMAN:\nare you nice\n\n### RESPONSE:\nvery</s>\n\n"
        "### HUMAN:\nwhy </s> so\n\n### RESPONSE:\nI like it</s>"
    )
    # What a person typed is only characters: three end tokens are written, two of them tokens.
    assert item.input_ids.count(tokenizer.eos_token_id) == 2
    assert item.input_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(item.prompt_ids).endswith("### RESPONSE:\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_under_markers_has_the_tokens_of_its_plain_text(tmp_path: Path, kind: str) -> None:
    """Whoever asks with the text alone, without this program, asks in the same tokens."""
    tokenizer = build(kind)
    item = load(tmp_path, tokenizer, CONVERSATION[1:3], chat="markers")
    text = "### HUMAN:\nare you nice\n\n### RESPONSE:\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert item.prompt_ids[-len(ids) :] == tuple(ids)


def test_the_tokenizers_own_template_is_followed(tmp_path: Path) -> None:
    """The text is the template's own, and generation starts where the template asks."""
    tokenizer = build(bos=False)
    tokenizer.chat_template = CHATML
    messages = [
        message | {"content": message["content"].replace(" </s>", "")} for message in CONVERSATION
    ]
    item = load(tmp_path, tokenizer, messages, chat="template")

    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(item.input_ids) + "\n" == whole
    assert learnt(tokenizer, item) == ["very</s>", "I like it</s>"]
    prompting = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(item.prompt_ids) == prompting


TURNS = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TURNS_AND_EOS = TURNS.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")


@pytest.mark.parametrize("template", [TURNS, TURNS_AND_EOS])
def test_an_answer_ends_with_the_token_that_its_template_closes_a_turn_with(
    tmp_path: Path, template: str
) -> None:
    """A template's own end of turn is learnt as one token, and EOS after the last answer."""
    tokenizer = build(bos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.chat_template = template
    messages = [
        CONVERSATION[1],
        CONVERSATION[2],
        {"role": "user", "content": "why so"},
        CONVERSATION[4],
    ]
    item = load(tmp_path, tokenizer, messages, chat="template")

    assert learnt(tokenizer, item) == ["very<|end|>", "I like it<|end|></s>"]
    assert tokenizer.decode(item.input_ids) == (
        "<|turn|>user\nare you nice<|end|>\n<|turn|>assistant\nvery<|end|>\n"
        "<|turn|>user\nwhy so<|end|>\n<|turn|>assistant\nI like it<|end|></s>"
    )
    assert item.input_ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 4
    assert item.completion == "I like it"


def test_a_template_that_changes_an_answer_is_refused(tmp_path: Path) -> None:
    """What is learnt must be what was said."""
    tokenizer = build(bos=False)
    tokenizer.chat_template = TURNS.replace("m['content']", "m['content'] | upper")
    with pytest.raises(DataError, match="rewrites what was said"):
        load(tmp_path, tokenizer, CONVERSATION[1:3], chat="template")


HEADED = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"


@pytest.mark.parametrize("answer", ["very", "assistant", "a"])
def test_a_heading_that_only_a_finished_turn_has_is_read_and_not_learnt(
    tmp_path: Path, answer: str
) -> None:
    """A template that knows no generation prompt still asks with the answer's heading."""
    tokenizer = build(bos=False)
    tokenizer.chat_template = HEADED
    messages = [
        CONVERSATION[1],
        {"role": "assistant", "content": answer},
        CONVERSATION[1],
        CONVERSATION[4],
    ]
    item = load(tmp_path, tokenizer, messages, chat="template")

    assert learnt(tokenizer, item) == [f"{answer}</s>", "I like it</s>"]
    assert tokenizer.decode(item.input_ids) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    assert tokenizer.decode(item.prompt_ids).endswith("<s>assistant\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system here') }}", r"refuses the conversation \(no system here\)"),
        (CHATML.replace("messages %}", "messages if m['role'] != 'system' %}", 1), "message 1"),
    ],
)
def test_a_template_without_a_place_for_a_systems_word_is_refused(
    tmp_path: Path, template: str, message: str
) -> None:
    """Whether it raises an error or says nothing of it, the row is named, and no word is lost."""
    tokenizer = build(bos=False)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: the chat template .*{message}") as caught:
        load(tmp_path, tokenizer, CONVERSATION[:3], chat="template")

    assert "chat: markers" not in str(caught.value)


def test_a_control_token_in_a_message_is_refused_under_a_template(tmp_path: Path) -> None:
    """Nobody can speak for the assistant by typing its tokens."""
    tokenizer = build(bos=False)
    tokenizer.chat_template = CHATML
    with pytest.raises(DataError, match=r"rows.jsonl:1: message 4 holds the control token '</s>'"):
        load(tmp_path, tokenizer, CONVERSATION, chat="template")


def test_a_long_conversation_loses_its_oldest_exchange_and_no_answer(tmp_path: Path) -> None:
    """What does not fit goes from the front; the answers that stay are whole."""
    tokenizer = build(bos=True)
    item = load(tmp_path, tokenizer, CONVERSATION, chat="markers", max_length=40)

    assert learnt(tokenizer, item) == ["I like it</s>"]
    assert len(item.input_ids) <= 40
    assert item.input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "the conversation is no list of messages"),
        (CONVERSATION[:2], "the conversation does not end with an answer"),
        (CONVERSATION[2:], "message 1 is by 'assistant', and user's turn it is"),
        ([CONVERSATION[1], {"role": "assistant", "content": " "}], "message 2 says nothing"),
        ([CONVERSATION[1], CONVERSATION[2] | {"content": "x" * 300}], "an answer needs"),
    ],
)
def test_a_broken_conversation_names_its_message(
    messages: Any, message: str, tmp_path: Path
) -> None:
    """Each disorder is an error with the row and the message."""
    with pytest.raises(DataError, match=f"rows.jsonl:1: {message}"):
        load(tmp_path, build(), messages, chat="markers")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{a}"}, "`completion` is missing"),
        ({"prompt": "{a}", "completion": "{b}", "messages": "m"}, "keep one way"),
    ],
)
def test_a_table_says_templates_or_messages(fields: dict[str, str], message: str) -> None:
    """Half a pair of templates, or both ways at once, are refused."""
    with pytest.raises(ValueError, match=message):
        DataTable(train="a.jsonl", **fields)  # type: ignore[arg-type]  # a case of wrong fields
