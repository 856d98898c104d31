"""Rows of preferences are called by name, with the way to learn the better answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import make_project
from support.tokenizers_built import build

from commands.runs.config import check_data_and_model
from commands.runs.config import load as load_run
from commands.ui.errors import UsageError
from trainer.data.examples import load_examples
from trainer.data.preferences import describe_preferences
from trainer.data_table import DataTable
from trainer.errors import DataError

TURN = [{"role": "assistant", "content": "blue"}]
PROMPT = [{"role": "user", "content": "what colour?"}]
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    # TRL's documentation of dataset types, and the sets on the hub that have these columns.
    "trl-prompt-and-pair": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        '`prompt: "{prompt}"` and `completion: "{chosen}"`',
    ),
    "hh-rlhf": ({"chosen": "\\n\\nHuman: q", "rejected": "\\n\\nHuman: q"}, "`text: chosen`"),
    "ultrafeedback-binarized": (
        {"prompt": "q", "chosen": [*PROMPT, *TURN], "rejected": [*PROMPT, *TURN]},
        "`messages: chosen`",
    ),
    "trl-explicit-prompt": (
        {"prompt": PROMPT, "chosen": TURN, "rejected": TURN},
        "join `prompt` and `chosen` to one list of messages",
    ),
    "kto": (
        {"prompt": "q", "completion": "a", "label": True},
        'keep those with `label: true`, and give `completion: "{completion}"`',
    ),
    "safe-rlhf": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1},
        "`response_0` and `response_1`, judged by `better_response_id`",
    ),
    "arena": (
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner_model_a": 1},
        "`response_a` and `response_b`, judged by `winner_model_a`",
    ),
    "shp": (
        {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
        "`human_ref_A` and `human_ref_B`, judged by `labels`",
    ),
    "webgpt": (
        {"question": {}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1},
        "`answer_0` and `answer_1`, judged by `score_0`",
    ),
    "alpaca-eval": (
        {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2},
        "`output_1` and `output_2`, judged by `preference`",
    ),
    "nectar": (
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        "a list of answers, `answers`, ranked by `rank`",
    ),
    "rrhf": (
        {"query": "q", "responses": ["a", "b"], "scores": [1, 0]},
        "a list of answers, `responses`, ranked by `scores`",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_forms_are_recognised(name: str) -> None:
    """Each says what it is and how the better answers can be learnt."""
    fields, advice = PUBLISHED[name]
    found = describe_preferences(fields)

    assert found.startswith("the row ")
    assert "qft learns answers: " in found
    assert advice in found


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "a", "label": "good"},
        {"text": "a", "label": True},
        {"chosen": "a"},
        {"answer_1": "a", "answer_2": "b"},
        {"answers": ["a", "b"]},
        {"answers": {"text": ["a", "b"], "answer_start": [1, 2]}},
        {"text": "a", "score": 5},
        {"messages": [*PROMPT, *TURN]},
    ],
)
def test_other_rows_are_no_preferences(fields: dict[str, Any]) -> None:
    """Pairs of prompt and answer, labels, conversations and reading tests are left alone."""
    assert describe_preferences(fields) == ""


def test_a_missing_field_of_preferences_is_answered_with_the_way(tmp_path: Path) -> None:
    """The trainer and the check before renting say the same."""
    project = make_project(tmp_path / "project")
    row = json.dumps({"text": "q", "prompt": "q", "chosen": "a", "rejected": "b"})
    (project.folder / "train.jsonl").write_text(row + "\n")
    table = DataTable(train="train.jsonl", prompt="{text}", completion="{mood}")
    advice = 'to learn the better ones, `prompt: "{prompt}"` and `completion: "{chosen}"`'

    with pytest.raises(DataError) as there:
        load_examples(table, project.folder / "train.jsonl", build(), max_length=64)
    with pytest.raises(UsageError) as here:
        check_data_and_model(load_run(project.config))
    for problem in (there.value.problems[0], here.value.problems[0]):
        assert "no field `mood`" in problem
        assert advice in problem


@pytest.mark.parametrize(
    ("data", "rows", "warning"),
    [
        (
            {"prompt": "{prompt}", "completion": "{completion}"},
            [{"prompt": "q", "completion": "a", "label": flag} for flag in (True, False, False)],
            "bad answers among those to learn: 2 (`label: false`",
        ),
        (
            {"prompt": "{prompt}", "completion": "{rejected}"},
            [{"prompt": "q", "chosen": "a", "rejected": "b"}],
            "bad answers among those to learn: 1 (`rejected` is the worse answer of a preference)",
        ),
        ({"text": "chosen"}, [{"chosen": "a", "rejected": "b"}], ""),
        (
            {"prompt": "{prompt}", "completion": "{label}"},
            [{"prompt": "q", "completion": "a", "label": False}],
            "",
        ),
    ],
)
def test_learning_bad_answers_gets_a_warning(
    data: dict[str, Any], rows: list[dict[str, Any]], warning: str, tmp_path: Path
) -> None:
    """A config that learns what the rows call bad gets a warning with the number of rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = DataTable.model_validate({"train": "rows.jsonl", **data})
    found = load_examples(table, path, build(), max_length=64).report.warnings

    assert len(found) == bool(warning)
    assert not warning or found[0].startswith(warning)
