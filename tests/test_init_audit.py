"""Whatever file `qft init --data` accepts, the run.yaml that it writes passes its own audit."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny import make_config, make_tokenizer

from commands.init import write
from commands.runs.config import load, row_problems
from commands.ui.errors import UsageError
from trainer.config import TrainerConfig
from trainer.data.rows import read_rows
from trainer.data.template import Template
from trainer.pages.audit import audit

TOKENIZER = make_tokenizer()
NAMES = ("text", "label", "instruction", "input", "output", "answer", "note", "Text ", "a b", "x.y")
WORDS = (
    *("yes", "no", "Yes", "yes ", " no", "1", "1.0", "0", "N/A", "none", "nan", "NaN", "", " "),
    *("a, b", "a; b", "b", "a", '{"a": 1}', "one\ntwo", "one\r\ntwo", "</s>", "{text}", "it's"),
    *('say "so"', "\\N", "[1]", "é\u0301", "\ufeffx", "#", "- a", "null", "true", "1e5", "->"),
)
CELLS = st.one_of(
    st.sampled_from(WORDS),
    st.integers(0, 40).map("Where is parcel {}?".format),
    st.text(max_size=12),
)
VALUES = st.one_of(
    CELLS,
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.0, 1.0, 2.5, float("nan"), float("inf")]),
    st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=3),
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=8)}
    ),
    max_size=4,
)


def columns(draw: st.DrawFn, cells: st.SearchStrategy[Any]) -> dict[str, list[Any]]:
    """Draw columns of one length; each takes its cells from a few that recur, or all anew."""
    count = draw(st.integers(1, 40))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    found = {}
    for name in names:
        few = st.sampled_from(draw(st.lists(cells, min_size=1, max_size=4)))
        wanted = draw(st.sampled_from([few, cells, st.integers().map("text {}".format)]))
        found[name] = draw(st.lists(wanted, min_size=count, max_size=count))
    return found


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a name and the content of a file: a table, or lines of JSON that may lack keys."""
    if draw(st.booleans()):
        table = columns(draw, CELLS)
        text = io.StringIO()
        separator = draw(st.sampled_from(",;\t|"))
        writer = csv.writer(
            text, delimiter=separator, lineterminator=draw(st.sampled_from(["\n", "\r\n"]))
        )
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
        return "rows.csv", text.getvalue()
    table = columns(draw, VALUES)
    if draw(st.integers(0, 5)) == 0:
        table["messages"] = [draw(TURNS) for _ in next(iter(table.values()))]
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    lacking = draw(st.sampled_from([(), ("input",), ("label", "input")]))
    kept = [
        {name: value for name, value in row.items() if not (name in lacking and n % 3 == 0)}
        for n, row in enumerate(rows)
    ]
    return "rows.jsonl", "".join(json.dumps(row) + "\n" for row in kept)


def accepted_by_the_audit(folder: Path) -> None:
    """Check what was written as `qft audit` does: its rows here, its tokens in the trainer."""
    made = load(folder / "run.yaml").config
    tables = made.trainer_tables
    given_tables = {name: tables[name] for name in ("data", "train", "eval") if tables.get(name)}
    config = TrainerConfig.model_validate(
        make_config(folder / "model", folder / "train.jsonl") | given_tables
    )
    templates = [Template.parse(text) for text in (made.data.prompt, made.data.completion)]
    for side in ("train", "eval"):
        assert row_problems(read_rows(folder / f"{side}.jsonl"), templates, made) == []
    assert audit(config, folder, TOKENIZER, seq2seq=False).train["rows"] > 0


@given(file=files())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_init_accepts_its_audit_accepts(file: tuple[str, str]) -> None:
    """A random file is refused without a trace, or becomes a run.yaml that the audit accepts."""
    name, content = file
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).write_bytes(content.encode("utf-8", "replace"))
        try:
            write(place, str(folder / name))
        except UsageError:
            assert [path.name for path in folder.iterdir()] == [name]
        else:
            accepted_by_the_audit(folder)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_check_above_reaches_files_that_are_accepted(tmp_path: Path, separator: str) -> None:
    """A plain table becomes a run.yaml, so that the property is no empty one."""
    rows = [f"Where is parcel {n}?{separator}{('yes', 'no')[n % 2]}" for n in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join([f"text{separator}label", *rows]))
    write(str(tmp_path), str(tmp_path / "rows.csv"))

    accepted_by_the_audit(tmp_path)
    assert (tmp_path / "run.yaml").exists()
