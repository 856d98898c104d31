"""Every chat template of TRL: prompts are generation's, learnt tokens those that TRL marks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from support import template_table, trl_templates
from support.trl_templates import CONVERSATIONS
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.data.chat.template import ChatTemplate, TemplateRefusal

NAMES = trl_templates.names()
TEXT = [name for name in NAMES if name not in trl_templates.WITH_PICTURES]
COMPLETED = ("deepseek_r1_distill", "deepseekv3")
"""Templates that ask with `<think>` open, and show finished turns without it."""
OWN = {
    ("diffusion_gemma", "tools"): ("<|tool_response>", "<|turn>model\n"),
    ("diffusion_gemma", "reasoning and tools"): ("<|tool_response>", "<|turn>model\n"),
}
"""What is learnt though TRL does not mark it: the hand-over, and a heading that no prompt has."""


def prompts(name: str, conversation: str) -> list[list[int]]:
    """The tokens that generation feeds for each answer, by transformers' own rendering."""
    tokenizer = trl_templates.tokenizer(name)
    row = template_table.row(conversation)
    messages = row["messages"]
    if name == "deepseekv3":  # it writes arguments as they are, so they must be text
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = '{"city": "Rome"}'
    return [
        tokenizer.apply_chat_template(
            messages[:at], tools=row.get("tools"), add_generation_prompt=True
        )["input_ids"]
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def marked(name: str, conversation: str) -> list[str]:
    """What TRL's training template marks in each answer, where the turns up to it are rendered."""
    tokenizer = trl_templates.tokenizer(name)
    source = (trl_templates.folder() / f"{name}_training.jinja").read_text(encoding="utf-8")
    row = template_table.row(conversation)
    found = []
    for at, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        out = tokenizer.apply_chat_template(
            row["messages"][: at + 1],
            tools=row.get("tools"),
            chat_template=source,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = out["assistant_masks"]
        end = len(mask) - mask[::-1].index(1)
        start = end - next((n for n, one in enumerate(mask[end - 1 :: -1]) if not one), end)
        found.append(tokenizer.decode(out["input_ids"][start:end]))
    return found


def without_overlap(text: str, prompt: str) -> str:
    """A text without what the prompt before it ends with, apart from space."""
    for length in range(len(text), 0, -1):
        if prompt.endswith(text[:length]) or prompt.rstrip().endswith(text[:length]):
            return text[length:]
    return text


def test_the_table_in_the_documents_is_what_comes_out() -> None:
    """The committed table was made by the code that is committed beside it."""
    committed = template_table.PAGE.read_text(encoding="utf-8")

    assert template_table.page(committed) == committed


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_before_each_answer_are_those_that_generation_feeds(name: str) -> None:
    """For every conversation that is trained, with every template."""
    trained = 0
    for conversation in CONVERSATIONS:
        items, reason = template_table.encoded(name, conversation)
        if not reason:
            found = [list(one.prompt) for one in template_table.learnt(items)]
            trained += 1

            assert found == prompts(name, conversation)
    assert trained >= (0 if name in trl_templates.WITH_PICTURES else 2)


@pytest.mark.parametrize("name", [name for name in TEXT if trl_templates.has_training(name)])
def test_learnt_are_the_tokens_that_trl_marks(name: str) -> None:
    """Apart from what the prompt has already, and what stands behind the end of the turn."""
    tokenizer = trl_templates.tokenizer(name)
    for conversation in CONVERSATIONS:
        items, reason = template_table.encoded(name, conversation)
        if reason:
            continue
        found = template_table.learnt(items)
        for one, theirs in zip(found, marked(name, conversation), strict=True):
            ours, prompt = tokenizer.decode(one.answer), tokenizer.decode(one.prompt)
            if name in COMPLETED and prompt.endswith("<think>\n"):
                prompt, (_, _, ours) = prompt.removesuffix("<think>\n"), ours.partition("</think>")
                ours = ours.removeprefix("\n\n")
            for extra in OWN.get((name, conversation), ()):
                ours = ours.removeprefix(extra).removesuffix(extra)
            ends = f"\n{tokenizer.eos_token}"
            expected = without_overlap(theirs, prompt).removesuffix(ends).rstrip("\n")
            if not expected.endswith(tokenizer.eos_token):
                ours = ours.removesuffix(tokenizer.eos_token)

            assert ours == expected


@pytest.mark.parametrize("name", COMPLETED)
def test_an_open_block_of_reasoning_is_filled_and_closed(name: str) -> None:
    """DeepSeek's prompt ends in `<think>`, so the answer begins with reasoning and `</think>`."""
    tokenizer = trl_templates.tokenizer(name)
    thought, _ = template_table.encoded(name, "reasoning")
    plain, _ = template_table.encoded(name, "one turn")
    end = tokenizer.eos_token

    assert [tokenizer.decode(one.answer) for one in template_table.learnt([*thought, *plain])] == [
        f"I look around.\n</think>\n\nHere.{end}",
        f"I look into the book.\n</think>\n\nSince May.{end}",
        f"\n</think>\n\nHere.{end}",
    ]


@pytest.mark.parametrize("name", sorted(trl_templates.WITH_PICTURES))
def test_a_template_for_pictures_is_refused_by_name(name: str) -> None:
    """Templates that take text only as parts beside pictures say so, whatever the conversation."""
    for conversation in CONVERSATIONS:
        items, reason = template_table.encoded(name, conversation)

        assert not items
        assert "takes texts only as parts beside pictures" in reason


@pytest.mark.parametrize("name", NAMES)
def test_a_rendering_is_that_of_transformers(name: str) -> None:
    """The limited sandbox writes the same text, or refuses where transformers does."""
    tokenizer = trl_templates.tokenizer(name)
    template = ChatTemplate.of(tokenizer, day=datetime.now().date())  # noqa: DTZ005 - theirs, too
    assert template is not None
    for conversation in CONVERSATIONS:
        row = template_table.row(conversation)
        for end in range(1, len(row["messages"]) + 1):
            for prompting in (False, True):
                messages, tools = row["messages"][:end], row.get("tools")

                assert ours(template, messages, tools, prompting=prompting) == theirs(
                    tokenizer, messages, tools, prompting=prompting
                )


def ours(template: ChatTemplate, messages: Any, tools: Any, *, prompting: bool) -> str | None:
    """A rendering in our sandbox, or None."""
    try:
        return template.render(messages, prompting=prompting, tools=tools)
    except TemplateRefusal:
        return None


def theirs(tokenizer: Any, messages: Any, tools: Any, *, prompting: bool) -> str | None:
    """A rendering by transformers, or None."""
    try:
        texts, _ = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=tokenizer.chat_template,
            add_generation_prompt=prompting,
            **tokenizer.special_tokens_map,
        )
    except Exception:  # noqa: BLE001 - a template may raise anything
        return None
    return str(texts[0])
