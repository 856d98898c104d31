"""Held-out rows are scored as the data is where run.yaml says nothing, and `qft init` says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands.init import write
from commands.runs.config import RunConfig, load
from trainer.config import TrainerConfig
from trainer.rundir.fingerprint import flatten_config

DATA: dict[str, dict[str, Any]] = {
    "text": {"prompt": "{a}", "completion": "{b}"},
    "chat": {"messages": "m"},
    "loss": {"text": "t"},
}
ROWS = {"text": 200, "chat": 100, "loss": 1000}
SENTENCES = ("the sky is grey today", "nobody knows why it rains", "a long way from home")


def configs(kind: str, **more: Any) -> list[TrainerConfig | RunConfig]:
    """The config of a run on data of a kind, as the machine and as the laptop read it."""
    data = {"train": "a.jsonl", "eval": "b.jsonl", **DATA[kind]}
    tables = {"model": {"id": "m"}, "data": data, **more}
    return [TrainerConfig.model_validate(tables), RunConfig.model_validate({"name": "x"} | tables)]


@pytest.mark.parametrize("kind", DATA)
def test_the_kind_follows_from_the_data(kind: str) -> None:
    """Without a table there is a bounded one to score by; the config stays what it was."""
    for config in configs(kind):
        assert config.eval is None
        assert config.scored is not None
        assert (config.scored.kind, config.scored.rows) == (kind, ROWS[kind])
    for config in configs(kind, eval={"rows": 7}):
        assert config.scored is not None
        assert (config.scored.kind, config.scored.rows) == (kind, 7)


@pytest.mark.parametrize("kind", DATA)
def test_none_is_no_score_and_the_same_run(kind: str) -> None:
    """`eval: none` scores nothing, and a run that began without it is not another one."""
    scored, none = configs(kind)[0], configs(kind, eval="none")[0]
    assert isinstance(scored, TrainerConfig)
    assert isinstance(none, TrainerConfig)

    assert none.scored is None
    assert flatten_config(scored) == flatten_config(none)


def test_without_held_out_rows_nothing_is_scored() -> None:
    """There is nothing to score then, and a table without rows is refused."""
    tables = {"model": {"id": "m"}, "data": {"train": "a.jsonl", **DATA["text"]}}

    assert TrainerConfig.model_validate(tables).scored is None
    with pytest.raises(ValueError, match=r"name a file in `data\.eval`"):
        TrainerConfig.model_validate({**tables, "eval": {"kind": "loss"}})


@pytest.mark.parametrize("kind", ["chat", "loss"])
def test_demonstrations_need_prompts(kind: str) -> None:
    """`eval.shots` is refused where rows have no prompts to put rows before."""
    with pytest.raises(ValueError, match=r"`eval\.shots` writes prompts"):
        configs(kind, eval={"kind": kind, "shots": 2})


@pytest.mark.parametrize("kind", DATA)
def test_init_writes_how_held_out_rows_are_scored(kind: str, tmp_path: Path) -> None:
    """The file says the kind and the bound that would hold without a word."""
    rows = [
        {
            "text": {"question": f"{one} {at}?", "answer": f"{SENTENCES[at % 3]}, {at * at}"},
            "chat": {"messages": [{"role": "user", "content": f"{one} {at}?"},
                                  {"role": "assistant", "content": f"yes, {at}"}]},
            "loss": {"text": f"{one}, {at}; {SENTENCES[at % 3]}"},
        }[kind]
        for at in range(60)
        for one in SENTENCES[:1]
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    write(str(tmp_path), str(tmp_path / "rows.jsonl"))
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    table = load(tmp_path / "run.yaml").config.scored

    assert table is not None
    assert (table.kind, table.rows) == (kind, ROWS[kind])
    assert f"eval:       {{kind: {kind}, rows: {ROWS[kind]}}}" in text
