"""A chat template is a stranger's program: it ends, writes within measure, and sees one day."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from support import trl_templates

from trainer.data.chat import limits as limits_module
from trainer.data.chat.conversation import parse_messages
from trainer.data.chat.encoder import ChatEncoder
from trainer.data.chat.limits import Limits, TemplateLimitError
from trainer.data.chat.template import ChatTemplate, TemplateRefusal
from trainer.data.codec import Codec
from trainer.data.examples import load_examples
from trainer.data_table import DataTable
from trainer.errors import DataError

MESSAGES = [{"role": "user", "content": "a"}]
GROWING = "{%% set ns = namespace(x='aaaa') %%}{%% for i in range(90) %%}%s{%% endfor %%}"
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    GROWING % "{% set ns.x = [ns.x, ns.x] %}" + "{{ ns.x | tojson }}",
]
TOO_LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 9 ** 999999999 }}",
    "{{ [1] * 10**10 }}",
    "{{ 'a' | center(10**10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ ('\t' * 1000).expandtabs(9999999) }}",
    "{{ 'a'.replace('', 'b' * 99999).replace('', 'b' * 99999) }}",
    "{{ ''.join(['a' * 99999] * 99999) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    GROWING % "{% set ns.x = ns.x ~ ns.x %}",
    GROWING % "{% set ns.x = ns.x + ns.x %}",
    GROWING % "{% set ns.x = ns.x | replace('a', 'aaaa') %}",
    GROWING % "{% set ns.x = [ns.x, ns.x] | join %}",
    GROWING % "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
]
REFUSED = [
    ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ ().__class__.__mro__ }}", "__class__"),
    ("{% if %}", "Expected an expression"),
    ("{{ 1e400 | int }}", "NameError"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ namespace(_x=1) }}", "must not hold '_x'"),
]


def template(source: str, **more: Any) -> ChatTemplate:
    """A chat template that sees the second of January."""
    return ChatTemplate(source=source, day=date(2026, 1, 2), special_tokens={}, **more)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a rendering take as many steps as a test has time for."""
    monkeypatch.setattr(limits_module, "STEPS_MAX", 50_000)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_does_not_end_is_refused(source: str) -> None:
    """Loops, recursion and what is written again and again are counted."""
    with pytest.raises(TemplateLimitError, match="does not end: 50,000 steps"):
        template(source).render(MESSAGES, prompting=True)


@pytest.mark.parametrize("source", TOO_LARGE)
def test_a_template_that_writes_without_measure_is_refused(source: str) -> None:
    """Before the text or the list is made, or at the latest when it has doubled once too often."""
    with pytest.raises(TemplateLimitError, match="writes more than 20,000,000 characters"):
        template(source).render(MESSAGES, prompting=True)


def test_a_slow_template_is_refused_by_the_clock() -> None:
    """Where single steps are slow, time ends what the number of steps would not."""
    seconds = iter(range(99999))
    slow = template(
        "{% for i in range(99999) %}{% endfor %}", limits=Limits(clock=lambda: next(seconds))
    )
    with pytest.raises(TemplateLimitError, match="takes more than 10 s"):
        slow.render(MESSAGES, prompting=True)


@pytest.mark.parametrize(("source", "reason"), REFUSED)
def test_whatever_a_template_raises_is_its_refusal(source: str, reason: str) -> None:
    """Nothing that a stranger's program does is a bug of this one."""
    with pytest.raises(TemplateRefusal, match=reason):
        template(source).render(MESSAGES, prompting=True)


@pytest.mark.usefixtures("few_steps")
def test_a_file_of_rows_ends_at_the_first_that_does_not(tmp_path: Path) -> None:
    """The reason stands once, and no further row is tried."""
    tokenizer = trl_templates.byte_level(["<|im_end|>"], eos="<|im_end|>")
    tokenizer.chat_template = ENDLESS[0]
    dialogue = [*MESSAGES, {"role": "assistant", "content": "b"}]
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"messages": dialogue}) + "\n") * 500, encoding="utf-8")
    table = DataTable.model_validate({"train": "a", "messages": "messages"})
    with pytest.raises(DataError, match="does not end") as caught:
        load_examples(table, path, tokenizer, max_length=99)

    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("base", ["llama3_2", "gptoss", "muse_glimmer"])
def test_a_template_sees_the_day_of_the_codec(base: str) -> None:
    """The same conversation has other tokens on another day, and the same on the same day."""
    dialogue = [*MESSAGES, {"role": "assistant", "content": "b"}]
    codec = Codec.from_tokenizer(
        trl_templates.tokenizer(base), max_length=9999, seq2seq=False, day=date(2024, 2, 29)
    )
    found = [
        ChatEncoder(codec=one, style="template").encode(parse_messages(dialogue), row=1)[0][0]
        for one in (codec, replace(codec), replace(codec, day=date(2024, 3, 1)))
    ]

    assert found[0] == found[1] != found[2]
    assert any(day in found[0].prompt for day in ("29 Feb 2024", "2024-02-29"))


@pytest.mark.parametrize(
    ("base", "against"), [("qwen2_5", "turns"), ("llama3_2", "turns"), ("qwen3", "tokens")]
)
def test_the_work_grows_with_the_turns_or_with_the_tokens_made(base: str, against: str) -> None:
    """Steps of the template against turns where it appends, against tokens where it rewrites."""
    codec = Codec.from_tokenizer(trl_templates.tokenizer(base), max_length=10**9, seq2seq=False)
    sizes, steps = [], []
    for exchanges in (10, 80):
        dialogue = [
            {"role": role, "content": f"{n} " + "word " * 19}
            for n in range(exchanges)
            for role in ("user", "assistant")
        ]
        encoder, spent = counted(ChatEncoder(codec=codec, style="template"))
        items = encoder.encode(parse_messages(dialogue), row=1)
        tokens = sum(len(item.input_ids) for item, _ in items)
        sizes.append(len(dialogue) if against == "turns" else tokens)
        steps.append(sum(spent))
    slope = math.log(steps[1] / steps[0]) / math.log(sizes[1] / sizes[0])

    assert slope < 1.1


def counted(encoder: ChatEncoder) -> tuple[ChatEncoder, list[int]]:
    """An encoder whose template keeps the number of steps of each rendering."""
    spent: list[int] = []
    chat = encoder._whole(tools=False).renderer.template
    render = chat.render

    def counting(*args: Any, **kwargs: Any) -> str:
        text = render(*args, **kwargs)
        spent.append(chat.limits.steps)
        return text

    chat.render = counting  # type: ignore[method-assign]  # the count is the test's alone
    return encoder, spent
