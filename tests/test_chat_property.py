"""Random conversations under templates that rewrite: every answer is learnt once, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support import template_table, trl_templates
from support.template_table import Learnt

from trainer.data.chat.conversation import parse_messages
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.codec import Codec
from trainer.data.template import MissingFieldError

LAST_USER = (
    "{%- set ns = namespace(last=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}"
    "{%- endif -%}{%- endfor -%}"
)
TURN = "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
REASONING = (
    "{%- if m.reasoning_content and loop.index0 > ns.last -%}"
    "<think>{{ m.reasoning_content }}</think>{%- endif -%}"
)
ASK = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"


def looped(inside: str) -> str:
    """A template with a loop over the turns."""
    return f"{LAST_USER}{{%- for m in messages -%}}{inside}{{%- endfor -%}}{ASK}"


TEMPLATES = {
    "appends": looped(TURN + "{{ m.content }}<|im_end|>\n"),
    "drops reasoning": looped(TURN + REASONING + "{{ m.content }}<|im_end|>\n"),
    "ends the last turn otherwise": looped(
        TURN + "{{ m.content }}{{ '<|im_end|>' if loop.last else '<|end|>' }}\n"
    ),
    "counts the turns": "{{ messages | length }} turns\n"
    + looped(TURN + "{{ m.content }}<|im_end|>"),
    "shortens old turns": looped(
        TURN + "{{ m.content if loop.index0 >= ns.last or m.role != 'assistant' "
        "else 'an old answer' }}<|im_end|>\n"
    ),
    "closes no turn": looped("<|{{ m.role }}|>{{ m.content }}").replace(
        "<|im_start|>assistant\n", "<|assistant|>"
    ),
    "asks with text alone": looped("{{ m.role ~ ': ' ~ m.content ~ '<|im_end|>\n' }}").replace(
        "<|im_start|>assistant\n", "assistant: "
    ),
    "forgets the beginning": looped(
        "{%- if loop.revindex <= 4 or loop.first -%}"
        + TURN
        + "{{ m.content }}<|im_end|>{%- endif -%}"
    ),
    "cuts old questions": looped(
        TURN + "{{ m.content if loop.index0 >= ns.last or m.role != 'user' else m.content[:2] }}"
        "<|im_end|>\n"
    ),
    "looks at the next turn": looped(
        TURN + "{{ m.content if loop.last or loop.nextitem.content != 'a' else 'before a' }}"
        "<|im_end|>\n"
    ),
    "asks in the loop": "{%- for m in messages -%}{{ m.role ~ ': ' ~ m.content ~ eos_token }}"
    "{%- if loop.last and add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}{%- endfor -%}",
}
CUTTING = ("cuts old questions", "looks at the next turn")
"""Templates that keep words of two questions in a row from the model, so that they are refused."""
WORDS = st.text("ab :\n{}%<|>", min_size=1, max_size=9).filter(
    lambda text: text.strip() and "<|" not in text
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns of all kinds, some answers with reasoning, some of them not learnt."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for _ in range(draw(st.integers(1, 6))):
        users = draw(st.lists(WORDS, min_size=1, max_size=2))
        messages += [{"role": "user", "content": words} for words in users]
        answer: dict[str, Any] = {"role": "assistant", "content": draw(WORDS)}
        if draw(st.booleans()):
            answer["weight"] = draw(st.sampled_from([0, 1]))
        messages.append(answer)
    messages[-1].pop("weight", None)
    return messages


def tokenizer(template: str) -> Any:
    """A byte-level tokenizer with one of the templates."""
    made = trl_templates.byte_level(
        [
            "<bos>",
            "<|im_start|>",
            "<|im_end|>",
            "<|end|>",
            "<|user|>",
            "<|assistant|>",
            "<|system|>",
        ],
        eos="<|im_end|>",
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_answer_is_learnt_once_behind_the_prompt_of_generation(name: str) -> None:
    """Prompts are transformers' own; learnt are the answers, in order, and nothing else."""
    made = tokenizer(TEMPLATES[name])
    codec = Codec.from_tokenizer(made, max_length=10**6, seq2seq=False)
    encoder = ChatEncoder(codec=codec, style="template")  # one for all, as for all rows of a file

    @given(messages=conversations(), reasoned=st.lists(st.booleans(), min_size=20, max_size=20))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def check(messages: list[dict[str, Any]], reasoned: list[bool]) -> None:
        if "reasoning" in name:
            for message, thinks in zip(messages, reasoned, strict=False):
                if message["role"] == "assistant" and thinks:
                    message["reasoning_content"] = "abba"
        try:
            found = encoder.encode(parse_messages(messages), row=1)
        except MissingFieldError:
            assert name in CUTTING
            reject()
        answers = [
            at
            for at, message in enumerate(messages)
            if message["role"] == "assistant" and message.get("weight") != 0
        ]
        expected = [
            made.apply_chat_template(messages[:at], add_generation_prompt=True)["input_ids"]
            for at in answers
        ]
        learnt: list[Learnt] = template_table.learnt([item for item, _ in found])

        assert [list(one.prompt) for one in learnt] == expected
        for at, one in zip(answers, learnt, strict=True):
            text = made.decode(one.answer)
            reasoning = messages[at].get("reasoning_content")

            assert text.startswith(
                (f"<think>{reasoning}</think>" if reasoning else "") + messages[at]["content"]
            )
            assert one.answer[-1] in codec.special_tokens.values()
            assert len(text) - len(messages[at]["content"]) < 50

    check()
