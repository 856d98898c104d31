"""Rows that could not be scored as run.yaml asks are refused before anything is rented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from support.tiny import ROOT, make_model

from commands.runs.comparing.row_figures import row_parts
from commands.runs.config import LoadedConfig, check_data_and_model, load
from commands.ui.errors import UsageError
from trainer.config import TrainerConfig
from trainer.data.row import Row
from trainer.pages.row_checks import _not_scorable
from trainer.scoring.scored_rows import scored_row_problems


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in a folder."""
    return make_model(tmp_path_factory.mktemp("base"))


def loaded(
    folder: Path, base: Path, table: dict[str, Any] | None, rows: list[dict[str, Any]], **data: Any
) -> LoadedConfig:
    """A run.yaml over rows that are learnt and held out alike."""
    for name in ("train", "eval"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    wanted = data or {"prompt": "{ask}", "completion": "{answer}"}
    content = {
        "name": "scored",
        "vm": {"provider": "local"},
        "model": {"id": str(base)},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", **wanted},
        "train": {"steps": 1},
        "eval": table,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load(path)


def answers(*texts: str) -> list[dict[str, Any]]:
    """Rows with these right answers."""
    return [{"ask": f"what {at}", "answer": text} for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ({"measures": ["json"]}, answers("1", "no"), ":2: the right answer is not JSON"),
        ({"measures": ["json"]}, answers('{"a": 1, "a": 2}'), ":1: the right answer has a key"),
        ({"measures": ["number"]}, answers("a", "b"), ":1: no right answer has a number (2"),
        ({"options": ["a", "b"]}, answers("a", "c", "b"), ":2: the right answer 'c' is"),
        ({"options": "ways"}, answers("a"), "eval.jsonl:1: `eval.options`: no field `ways`"),
        ({"options": ["a", "b"]}, answers("a", "B"), "eval.jsonl:2: the right answer is a letter"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_scored_are_refused_first(
    tmp_path: Path, base: Path, table: dict[str, Any], rows: list[dict[str, Any]], message: str
) -> None:
    """The error names file and row and what to do, and says that nothing was rented."""
    with pytest.raises(UsageError) as caught:
        check_data_and_model(loaded(tmp_path, base, table, rows))

    assert "nothing was rented" in caught.value.message
    problems = [one for one in caught.value.problems if one.startswith("data.eval: ")]
    assert any(message in one for one in problems)
    assert all("; " in one or "`" in one for one in problems)


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ({"measures": ["json"]}, answers('{"a": 1}', '```json\n{"a": 2}\n```')),
        ({"measures": ["number"]}, answers("none", "about 7")),
        ({"options": ["a", "b"]}, answers("a", "b ")),
        ({"options": ["a", "b"]}, answers("A", "B")),
        ({"kind": "loss"}, answers("a")),
    ],
)
def test_rows_that_can_be_scored_pass(
    tmp_path: Path, base: Path, table: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """What a measure or a choice can use is no fault."""
    assert check_data_and_model(loaded(tmp_path, base, table, rows)) == []


def test_answers_of_conversations_are_checked_too(tmp_path: Path, base: Path) -> None:
    """Every answer that is scored, not only the last, has to be one that the measure reads."""
    turns = [
        {"role": role, "content": text}
        for role, text in zip(["user", "assistant"] * 2, ["a", "no", "b", "[1]"], strict=True)
    ]
    rows = [{"talk": turns}]
    every = loaded(tmp_path, base, {"measures": ["json"]}, rows, messages="talk", chat="markers")
    with pytest.raises(UsageError, match="cannot be used") as caught:
        check_data_and_model(every)
    last = loaded(
        tmp_path, base, {"measures": ["json"]}, rows,
        messages="talk", chat="markers", answers="last",
    )  # fmt: skip

    assert "eval.jsonl:1: the right answer is not JSON" in caught.value.problems[0]
    assert check_data_and_model(last) == []


def test_the_audit_tells_of_rows_that_cannot_be_scored() -> None:
    """Of rows to learn from, too: an answer that is no option is learnt for nothing."""
    config = trainer_config({"options": ["a", "b"]}, prompt="{ask}", completion="{answer}")
    rows = [
        Row(number=at, fields=fields) for at, fields in enumerate(answers("a", "c", "d"), start=1)
    ]

    assert [line[:38] for line in _not_scorable(rows, config)] == [
        "row 2: the right answer 'c' is not amo"
    ]
    assert next(iter(_not_scorable(rows, config))).endswith("(and 1 more such rows)")
    assert scored_row_problems([], config.data, config.scored) == []


def trainer_config(table: dict[str, Any] | None, **data: Any) -> TrainerConfig:
    """A trainer's config with this table `eval`."""
    files = {"train": "train.jsonl", "eval": "eval.jsonl"}
    return TrainerConfig.model_validate(
        {"model": {"id": "x"}, "data": {**files, **data}, "eval": table}
    )


PAIRS = {"prompt": "{a}", "completion": "{b}"}


@pytest.mark.parametrize(
    ("table", "data", "kind", "rows"),
    [
        ({}, PAIRS, "text", 200),
        ({"rows": 7}, PAIRS, "text", 7),
        ({}, {"messages": "talk"}, "chat", 100),
        ({}, {"text": "text"}, "loss", None),
        ({"labels": ["a"], "kind": "label"}, PAIRS, "label", None),
        ({"labels": ["a"]}, PAIRS, "label", None),
        ({"options": ["a", "b"]}, PAIRS, "choice", None),
        ({"kind": "loss"}, PAIRS, "loss", None),
    ],
)
def test_a_table_without_a_kind_follows_the_data(
    table: dict[str, Any], data: dict[str, Any], kind: str, rows: int | None
) -> None:
    """Conversations are scored as chats, prompts as texts, and of whole texts there is the loss."""
    found = trainer_config(table, **data).scored

    assert found is not None
    assert (found.kind, found.rows) == (kind, rows)


@pytest.mark.parametrize(
    ("table", "data", "message"),
    [
        ({"kind": "text"}, {"messages": "talk"}, "write `kind: chat`"),
        ({"kind": "chat"}, PAIRS, "write `kind: text`"),
        ({"kind": "text"}, {"text": "text"}, "`data.text` has none"),
        ({"kind": "choice", "options": ["a", "b"]}, {"text": "text"}, "`data.text` has none"),
        ({"measures": []}, PAIRS, "measures"),
        ({"measures": ["exact", "exact"]}, PAIRS, "names a measure twice"),
        ({"measures": ["rouge"]}, PAIRS, "measures"),
        ({"measures": ["exact"], "tolerance": {"absolute": 1}}, PAIRS, "without `number` or"),
        ({"measures": ["json"], "ignore_case": True}, PAIRS, "without `exact` or `contains`"),
        ({"measures": ["exact"], "lists": "unordered"}, PAIRS, "without `json`"),
        ({"measures": ["number"], "tolerance": {"absolute": -1}}, PAIRS, "tolerance.absolute"),
        ({"tokens_max": 0}, PAIRS, "tokens_max"),
        ({"rows": None}, PAIRS, "rows"),
        ({"options": ["a"]}, PAIRS, "options"),
        ({"options": ["a", " a"]}, PAIRS, "texts that differ"),
        ({"options": " "}, PAIRS, "names no field"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused(
    table: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    """Kinds that do not go with the data, measures there are not, and settings of no effect."""
    with pytest.raises(ValidationError) as caught:
        trainer_config(table, **data)

    assert message in str(caught.value)


def test_the_checks_need_no_library() -> None:
    """A computer that only rents and watches has neither numpy nor torch, and still checks rows."""
    program = (
        "import sys\n"
        "for name in ('numpy', 'torch', 'transformers', 'sklearn', 'sacrebleu'):\n"
        "    sys.modules[name] = None\n"
        "from trainer.data_table import DataTable\n"
        "from trainer.data.row import Row\n"
        "from trainer.eval_tables.text import TextEvalTable\n"
        "from trainer.scoring.scored_rows import scored_row_problems\n"
        "data = DataTable(train='t', eval='e', prompt='{a}', completion='{b}')\n"
        "table = TextEvalTable(measures=['json', 'number'])\n"
        "rows = [Row(number=1, fields={'a': 'x', 'b': 'y'})]\n"
        "print(len(scored_row_problems(rows, data, table)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("2\n", "")


def test_two_runs_compare_every_figure_of_their_rows() -> None:
    """Means, leaves of JSON and choices come from what a row keeps; junk there is no figure."""
    document = {
        "score": 0.5,
        "figures": {"chrf": 0.25, "json": 0.5, "exact": 0.5},
        "statistics": {"exact": [1, 2], "json": [1, 2, 2, 0, 1, 1], "chrf": [1] * 18},
    }
    text = row_parts({"kind": "chat"}, document)
    choice = row_parts({"kind": "choice"}, {"score": 1.0, "figures": {"sum": 1.0, "letter": 0.0}})

    assert text == {
        "exact": (1, 2), "chrf": (1,) * 18, "json": (2, 4), "json_precision": (1, 2),
        "json_recall": (1, 2), "json_exact": (0, 1), "json_readable": (1, 1),
    }  # fmt: skip
    assert choice == {
        "accuracy": (1, 1), "accuracy by sum": (1, 1), "accuracy by letter": (0, 1),
    }  # fmt: skip
    assert row_parts({"kind": "text"}, {"statistics": {"exact": ["x", 1], "json": 3}}) == {}
