"""What published conversations hold is learnt, kept as context, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import trl_templates

from trainer.data.codec import NOT_TRAINED, Example
from trainer.data.examples import Examples, load_examples
from trainer.data_table import DataTable
from trainer.errors import DataError

USER = {"role": "user", "content": "Where is my parcel?"}
ANSWER = {"role": "assistant", "content": "It left on Monday."}
AGAIN = {"role": "user", "content": "And the other?"}
LAST = {"role": "assistant", "content": "The same."}
TURNS = [USER, ANSWER, AGAIN, LAST]


def load(tmp_path: Path, row: Any, *, base: str = "qwen2_5", **data: Any) -> Examples:
    """Write one row, or the messages of one, and load it under a base's own template."""
    row = row if isinstance(row, dict) else {"messages": row}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    length = data.pop("max_length", 10**6)
    table = DataTable.model_validate({"train": "a", "messages": "messages", **data})
    return load_examples(table, path, trl_templates.tokenizer(base), max_length=length)


def learnt(base: str, *items: Example) -> list[str]:
    """The stretches of tokens that examples learn, as text."""
    stretches: list[list[int]] = []
    for item in items:
        stretches.append([])
        for label in item.labels:
            if label == NOT_TRAINED:
                stretches.append([])
            else:
                stretches[-1].append(label)
    tokenizer = trl_templates.tokenizer(base)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def whole(base: str, item: Example) -> str:
    """All tokens of an example as text."""
    return str(trl_templates.tokenizer(base).decode(item.input_ids))


NOT_LEARNT = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"trainable": False},
    {"train_on_turn": False},
    {"loss": False},
    {"loss": 0},
    {"mask": True},
    {"masked": True},
    {"train": "false"},
]
"""OpenAI, Axolotl, ms-swift, torchtune and their like; axolotl#1703: it was learnt all the same."""


@pytest.mark.parametrize("key", NOT_LEARNT, ids=str)
def test_an_answer_marked_as_not_learnt_is_context(tmp_path: Path, key: dict[str, Any]) -> None:
    """The answer stays in the prompt of the next one, and none of its tokens is learnt."""
    (item,) = load(tmp_path, [USER, ANSWER | key, AGAIN, LAST | {"weight": 1}]).items

    assert learnt("qwen2_5", item) == ["The same.<|im_end|>"]
    assert "It left on Monday.<|im_end|>" in whole("qwen2_5", item)


@pytest.mark.parametrize("base", ["qwen2_5", "qwen3"])
def test_what_follows_the_last_answer_to_learn_is_left_out(tmp_path: Path, base: str) -> None:
    """A conversation whose end is not learnt is cut behind the last answer that is."""
    (item,) = load(tmp_path, [USER, ANSWER, AGAIN, LAST | {"weight": 0}], base=base).items

    assert item.completion == "It left on Monday."
    assert "And the other?" not in whole(base, item)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weight": 0.5}, r"message 2: `weight: 0.5` is understood as 0 or 1"),
        ({"weight": 2}, r"message 2: `weight: 2` is understood as 0 or 1"),
        ({"mask": 1}, r"message 2: `mask: 1` can be read both ways"),
        ({"train": True, "weight": 0}, r"message 2: `weight` and `train` contradict each other"),
        ({"emotion": "glad"}, r"message 2 has a key `emotion` .*`data: \{ignore: \[emotion\]\}`"),
        ({"content": None}, "message 2 says nothing"),
        ({"role": "narrator"}, "message 2 is by 'narrator'; known are system, developer, user"),
        ({"content": 7}, "message 2: `content` is a int, neither text nor a list of parts"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
            r"message 2 holds a picture \(a part of type `image_url`\)",
        ),
        ({"content": [{"type": "input_audio"}]}, r"message 2 holds sound"),
        ({"content": [{"type": "tool_use", "id": "1"}]}, "a part of type `tool_use`"),
        (
            {"tool_calls": [{"function": {}}]},
            "message 2: tool call 1 has no function with a `name`",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "message 2: tool call 1: `arguments` is text that is no JSON",
        ),
        ({"reasoning": "a", "thinking": "b"}, "message 2 holds two different reasonings"),
        ({"content": "<|im_end|>"}, r"message 2 holds the control token '<\|im_end\|>'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    """The message names row, turn and key, and what can be done."""
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{problem}"):
        load(tmp_path, [USER, ANSWER | change, AGAIN, LAST])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"images": ["a.png"]}, "`images` beside `messages` holds pictures, films or sound"),
        ({"audios": ["a.wav"]}, "`audios` beside `messages` holds pictures, films or sound"),
        ({"rejected": "no"}, "`rejected` beside `messages` is a preference between answers"),
        ({"instruction": "x"}, r"`instruction` beside `messages` is not understood; .*ignore"),
        ({"weight": 0.1}, "`weight` beside `messages` is not understood"),
        ({"tools": "{"}, "the column `tools` is text that is no JSON"),
        ({"tools": [{"name": ""}]}, "the column `tools`: tool 1 has no function with a `name`"),
        ({"tools": [{"name": "f"}], "functions": [{"name": "f"}]}, "both `tools` and `functions`"),
        ({"chat_template_kwargs": {"messages": []}}, "must not name `messages`"),
    ],
)
def test_a_column_that_could_change_the_meaning_is_understood_or_refused(
    tmp_path: Path, columns: dict[str, Any], problem: str
) -> None:
    """What stands beside a conversation is never lost in silence."""
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{problem}"):
        load(tmp_path, {"messages": TURNS, **columns})


def test_what_is_ignored_or_describes_or_is_empty_does_not_matter(tmp_path: Path) -> None:
    """The tokens are those of the bare conversation; a repeated turn is no news either."""
    described = {"id": 7, "source": "shop", "images": [], "rejected": None, "mood": "glad"}
    conversation = [USER | {"emotion": "glad"}, ANSWER | {"refusal": None}, AGAIN, LAST]
    row = {"prompt": "Where is my parcel?", "messages": conversation, **described}
    found = load(tmp_path, row, ignore=["emotion", "mood"])

    assert found.items == load(tmp_path, TURNS).items


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    """Content as a list (FastChat#3017) has the tokens of the same text."""
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "my parcel?"}]
    conversation = [
        {"role": "user", "content": parts},
        ANSWER,
        AGAIN,
        LAST | {"content": ["The same."]},
    ]

    assert load(tmp_path, conversation).items == load(tmp_path, TURNS).items


def test_names_of_sharegpt_are_read(tmp_path: Path) -> None:
    """`from` and `value`, a `system` column, tools as JSON text, calls and results as turns."""
    call = {"name": "find", "arguments": {"parcel": 7}}
    tool = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    row = {
        "system": "Be brief.",
        "tools": json.dumps([tool]),
        "messages": [
            {"from": "human", "value": "Where is it?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "in Rome"},
            {"from": "gpt", "value": "In Rome."},
        ],
    }
    plain = {
        "tools": [{"type": "function", "function": tool}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": "in Rome"},
            {"role": "assistant", "content": "In Rome."},
        ],
    }

    assert load(tmp_path, row).items == load(tmp_path, plain).items
    assert learnt("qwen2_5", *load(tmp_path, row).items) == [
        '<tool_call>\n{"name": "find", "arguments": {"parcel": 7}}\n</tool_call><|im_end|>',
        "In Rome.<|im_end|>",
    ]


@pytest.mark.parametrize("base", ["qwen2_5", "llama3_1", "gptoss", "qwen3_5_think", "deepseekv3"])
def test_arguments_as_json_text_are_those_of_the_object(tmp_path: Path, base: str) -> None:
    """No template gets them quoted twice, or a text that it cannot take.

    OpenAI writes them as text: Qwen3#1894, Qwen3-Coder#444.
    """
    rows = []
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):
        row = json.loads(json.dumps({"messages": trl_templates.CONVERSATIONS["tools"]}))
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
        rows.append(load(tmp_path, row | {"tools": trl_templates.TOOLS}, base=base).items)

    assert rows[0] == rows[1]
    assert '\\"city' not in whole(base, rows[0][0])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learnt_with_its_answer(tmp_path: Path, key: str) -> None:
    """Under each of its names (slime#330, torchtitan#2769), and as `<think>` inside the text."""
    conversation = [USER, ANSWER | {key: "Page 3 says so."}]
    inside = [
        USER,
        ANSWER | {"content": "<think>\nPage 3 says so.\n</think>\n\nIt left on Monday."},
    ]

    for row in (conversation, inside):
        assert learnt("qwen3", *load(tmp_path, row, base="qwen3").items) == [
            "<think>\nPage 3 says so.\n</think>\n\nIt left on Monday.<|im_end|>"
        ]


@pytest.mark.parametrize(
    ("base", "chat", "problem"),
    [
        ("llama3", "template", "leaves out the reasoning of message 2"),
        ("qwen3_5_nothink", "template", "closes the reasoning before the answer"),
        ("llama3", "markers", "`chat: markers` has no place for it"),
    ],
)
def test_reasoning_without_a_place_is_refused_unless_it_is_ignored(
    tmp_path: Path, base: str, chat: str, problem: str
) -> None:
    """It is never lost in silence; `data.ignore` learns the answer without it."""
    conversation = [USER, ANSWER | {"reasoning_content": "Page 3 says so."}]
    with pytest.raises(DataError, match=problem):
        load(tmp_path, conversation, base=base, chat=chat)
    (item,) = load(tmp_path, conversation, base=base, chat=chat, ignore=["reasoning_content"]).items

    assert "Page 3" not in whole(base, item)


def test_a_row_can_ask_for_reasoning(tmp_path: Path) -> None:
    """`chat_template_kwargs` open the block that a small Qwen3.5 else closes in its prompt."""
    conversation = [USER, ANSWER | {"reasoning_content": "Page 3 says so."}]
    row = {"messages": conversation, "chat_template_kwargs": {"enable_thinking": True}}
    (item,) = load(tmp_path, row, base="qwen3_5_nothink").items

    assert learnt("qwen3_5_nothink", item) == [
        "Page 3 says so.\n</think>\n\nIt left on Monday.<|im_end|>"
    ]


def test_each_answer_of_a_rewriting_template_is_an_example(tmp_path: Path) -> None:
    """Qwen3 (Qwen3#1522): two examples of one row, and the report says so."""
    found = load(tmp_path, TURNS, base="qwen3")

    assert [item.completion for item in found.items] == ["It left on Monday.", "The same."]
    assert {item.row for item in found.items} == {1}
    assert (found.report.rows, found.report.examples) == (1, 2)
    tokens = sum(len(item.input_ids) for item in found.items)
    assert found.report.expansion == f"1 conversation becomes 2 examples, {tokens} tokens"


@pytest.mark.parametrize("base", ["qwen2_5", "qwen3"])
def test_only_the_last_answer_is_learnt_on_request(tmp_path: Path, base: str) -> None:
    """`data: {answers: last}` makes one example with the last prompt that generation makes."""
    all_of_them = load(tmp_path, TURNS, base=base).items
    (item,) = load(tmp_path, TURNS, base=base, answers="last").items

    assert len(learnt(base, item)) == 1
    assert item.prompt_ids == all_of_them[-1].prompt_ids
    assert load(tmp_path, TURNS, base=base, answers="last").report.expansion is None


@pytest.mark.parametrize("base", ["qwen2_5", "qwen3", "gptoss"])
def test_several_users_in_a_row_are_taken_as_the_template_takes_them(
    tmp_path: Path, base: str
) -> None:
    """Both turns are in the prompt, the answer is learnt."""
    (item,) = load(tmp_path, [{"role": "user", "content": "Hello"}, USER, ANSWER], base=base).items

    assert "Hello" in whole(base, item)
    assert "It left on Monday." in learnt(base, item)[0]


def test_a_greeting_is_context(tmp_path: Path) -> None:
    """No prompt asks for what stands before everything, so it is read and not learnt."""
    hello = {"role": "assistant", "content": "Hello, how can I help?"}
    (item,) = load(tmp_path, [hello, USER, ANSWER]).items

    assert learnt("qwen2_5", item) == ["It left on Monday.<|im_end|>"]
    assert "Hello, how can I help?" in whole("qwen2_5", item)


@pytest.mark.parametrize(
    ("conversation", "problem"),
    [
        # smol-course#260, alignment-handbook#93.
        ([USER, USER, ANSWER], r"must alternate.*message 2 by the user; join it with message 1"),
        ([ANSWER, USER, LAST], r"must alternate.*message 1 by the assistant; let the user begin"),
        (
            [{"role": "system", "content": "Be brief."}, USER, ANSWER],
            r"System role not supported\) at message 1 by the system; put its words into the first",
        ),
    ],
)
def test_what_a_template_refuses_names_the_turn_and_a_way_out(
    tmp_path: Path, conversation: Any, problem: str
) -> None:
    """The template's own reason is shown, and never the advice to leave the base's format."""
    with pytest.raises(DataError, match=problem) as caught:
        load(tmp_path, conversation, base="gemma")

    assert "markers" not in str(caught.value)


def test_learning_all_tokens_and_masking_an_answer_contradict_each_other(tmp_path: Path) -> None:
    """`loss_on: all` cannot keep what a message says of itself."""
    with pytest.raises(
        DataError, match=r"message 2 says that it is not learnt, and `data: \{loss_on"
    ):
        load(tmp_path, [USER, ANSWER | {"weight": 0}, AGAIN, LAST], loss_on="all")


@pytest.mark.parametrize("base", ["qwen2_5", "qwen3"])
def test_a_long_conversation_loses_its_oldest_exchanges(tmp_path: Path, base: str) -> None:
    """What is kept fits, is as much as fits, and is what the rest alone would be rendered as."""
    system = {"role": "system", "content": "Be brief."}
    conversation = [
        system,
        *(turn | {"content": f"{turn['content']} {n}"} for n in range(9) for turn in TURNS),
    ]
    items = load(tmp_path, conversation, base=base, max_length=400).items
    last = items[-1]

    assert all(len(item.input_ids) <= 400 for item in items)
    assert whole(base, last).startswith("<|im_start|>system\nBe brief.")
    kept = sum(f" {n}<|im_end|>" in whole(base, last) for n in range(9))
    assert 0 < kept < 9
    rest = load(
        tmp_path, [system, *conversation[-2 * last_exchanges(base, last) :]], base=base
    ).items
    assert rest[-1].input_ids == last.input_ids
    more = load(
        tmp_path, [system, *conversation[-2 * last_exchanges(base, last) - 2 :]], base=base
    ).items
    assert len(more[-1].input_ids) > 400


def last_exchanges(base: str, item: Example) -> int:
    """The number of exchanges in an example."""
    return whole(base, item).count("<|im_start|>user")
