"""The rows of a plan are all rows of the files, as long as their text is, or those of `plan`."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import make_tokenizer

from commands.runs.config import LoadedConfig, absent_files, check_data_and_model, load
from commands.runs.planning import row_sample
from commands.runs.planning.bytes_per_token import bytes_per_token, tokens_by_script
from commands.runs.planning.estimates import HERE, estimate_job
from commands.runs.planning.make_page import make_plan
from commands.runs.planning.row_lengths import RowLengths, row_lengths
from commands.runs.planning.row_sample import sample_rows
from commands.ui.errors import UsageError

PROSE = "The quick brown fox jumps over the lazy dog and runs home before it rains again. "


def rows(count: int) -> list[dict[str, str]]:
    """So many rows of prose, some ten times as long as the others."""
    return [{"text": PROSE * (10 if n % 10 == 0 else 1), "label": "good"} for n in range(count)]


def write(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    """Write rows in the format that the name says."""
    if ".csv" in path.name:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(found[0]))
            table.writeheader()
            table.writerows(found)
        return path
    if path.suffix == ".json":
        path.write_text(json.dumps(found))
        return path
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(list(found)), path)
        return path
    content = "".join(json.dumps(row) + "\n" for row in found).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def project(folder: Path, **tables: Any) -> LoadedConfig:
    """Write a run.yaml that reads `train.jsonl`."""
    config = {
        "name": "rows",
        "vm": {"provider": "local", "gpu": "T4"},
        "model": {"id": "microsoft/phi-2"},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"epochs": 1, "max_length": 256},
        **tables,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


def lengths(loaded: LoadedConfig) -> RowLengths:
    """The lengths of a run whose rows are here."""
    found = row_lengths(loaded)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.ndjson"]
)
def test_all_rows_of_every_format_are_counted(tmp_path: Path, name: str) -> None:
    """The number is exact, and no more rows are kept than stand for all."""
    found = sample_rows(write(tmp_path / name, rows(4321)))

    assert found.rows == 4321
    assert 0 < len(found.fields) <= row_sample.SAMPLED_ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_large_file_is_counted_without_being_read_as_rows(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are those that reading it whole would find, blank lines and quotes included."""
    path = write(tmp_path / name, [*rows(3000), {"text": 'two\n"lines"\n', "label": "a\n\nb"}])
    whole = sample_rows(path)
    if name == "a.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"}\n", b"}\n\n"))
    monkeypatch.setattr(row_sample, "WHOLE_BYTES_MAX", 0)

    assert sample_rows(path).rows == whole.rows == 3001
    assert {"text", "label"} <= set(sample_rows(path).fields[0])


def test_sampled_lines_come_from_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is sorted by length has the mean of all its rows, not that of the first ones."""
    path = write(tmp_path / "a.jsonl", [{"text": "x" * n} for n in range(9000)])
    monkeypatch.setattr(row_sample, "WHOLE_BYTES_MAX", 0)
    sizes = [len(row["text"]) for row in sample_rows(path).fields]

    assert sum(sizes) / len(sizes) == pytest.approx(4500, rel=0.01)


def test_rows_are_as_long_as_their_text_and_end_with_an_answer(tmp_path: Path) -> None:
    """English prose has about four bytes a token; an answer has its end beside its words."""
    write(tmp_path / "train.jsonl", [{"text": PROSE, "label": "good"}] * 50)
    found = lengths(project(tmp_path))

    assert found.rows == 50
    assert found.mean_tokens == pytest.approx(len(PROSE + "good") / 4, rel=0.1)
    assert found.target_tokens == 2
    assert found.counted


def test_rows_that_are_too_long_are_cut_or_left_out(tmp_path: Path) -> None:
    """`cut` trains each at the longest length, `drop` trains fewer, and says how many fewer."""
    write(tmp_path / "train.jsonl", rows(100))
    data = {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"}
    train = {"epochs": 1, "max_length": 64}
    cut = lengths(project(tmp_path, data=data, train=train))
    dropped = lengths(project(tmp_path, data={**data, "too_long": "drop"}, train=train))

    assert (cut.rows, cut.longest_tokens, cut.dropped) == (100, 64, 0)
    assert dropped.rows == 90
    assert dropped.dropped == pytest.approx(0.1)
    assert dropped.longest_tokens < 64


def test_weighted_data_sets_count_as_often_as_they_are_trained(tmp_path: Path) -> None:
    """A set of weight 2 counts twice, in the number of rows and in their mean length."""
    write(tmp_path / "short.jsonl", [{"text": PROSE, "label": "good"}] * 40)
    write(tmp_path / "long.jsonl", [{"text": PROSE * 8, "label": "good"}] * 10)
    data = {"prompt": "{text}", "completion": "{label}"}
    sets = [{"path": "short.jsonl", "weight": 0.5}, {"path": "long.jsonl", "weight": 3}]
    each = [lengths(project(tmp_path, data={**data, "train": one["path"]})) for one in sets]
    both = lengths(project(tmp_path, data={**data, "train": sets}))

    assert both.rows == 20 + 30
    mean = (20 * each[0].mean_tokens + 30 * each[1].mean_tokens) / 50
    assert both.mean_tokens == pytest.approx(mean, rel=0.01)


def test_a_conversation_has_all_its_answers_or_the_last_one(tmp_path: Path) -> None:
    """`answers: last` reads the same tokens and learns fewer of them."""
    turns = [{"role": role, "content": PROSE} for _ in range(3) for role in ("user", "assistant")]
    write(tmp_path / "train.jsonl", [{"messages": turns}] * 5)
    data = {"train": "train.jsonl", "messages": "messages"}
    every = lengths(project(tmp_path, data=data))
    last = lengths(project(tmp_path, data={**data, "answers": "last"}))

    assert every.mean_tokens == last.mean_tokens
    assert every.target_tokens > 2.5 * last.target_tokens


def test_of_a_text_every_token_is_learnt(tmp_path: Path) -> None:
    """`data.text` and `loss_on: all` leave no prompt."""
    write(tmp_path / "train.jsonl", rows(20))
    text = lengths(project(tmp_path, data={"train": "train.jsonl", "text": "text"}))
    pair = {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}", "loss_on": "all"}
    whole = lengths(project(tmp_path, data=pair))

    assert text.target_tokens == pytest.approx(text.mean_tokens, rel=0.05)
    assert whole.target_tokens == pytest.approx(whole.mean_tokens, rel=0.05)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE, 14, 24),
        ("def f(x):\n    return [y**2 for y in range(x) if y % 2 == 0]\n", 18, 34),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", 14, 32),
        ("素早い茶色の狐がのろまな犬を飛び越える。", 14, 26),
        ("", 0, 0),
    ],
    ids=["English", "code", "Russian", "Japanese", "nothing"],
)
def test_scripts_have_about_as_many_tokens_as_their_kind(text: str, least: int, most: int) -> None:
    """English has somewhat more tokens than words, code one for most marks, kana one a sign."""
    assert least <= tokens_by_script(text) <= most


def test_a_tokenizer_that_lies_here_is_used(tmp_path: Path) -> None:
    """One of single bytes has a byte a token, whatever the script; a broken one is passed over."""
    make_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "broken.json").write_text("{")

    assert bytes_per_token([PROSE, PROSE], tmp_path / "tokenizer.json") == 1
    assert bytes_per_token([PROSE], tmp_path / "broken.json") == bytes_per_token([PROSE])
    assert bytes_per_token([PROSE], tmp_path / "absent.json") == bytes_per_token([PROSE])


PLAN = {"rows": 3500, "tokens": 90, "answer_tokens": 8, "eval_rows": 100}


def test_the_table_plan_stands_for_rows_that_are_not_here(tmp_path: Path) -> None:
    """Its figures are used as they are, and not once the file is here."""
    loaded = project(tmp_path, plan=PLAN)
    planned = lengths(loaded)
    write(tmp_path / "train.jsonl", rows(20))
    counted = lengths(loaded)

    assert (planned.rows, planned.mean_tokens, planned.target_tokens) == (3500, 90, 8)
    assert not planned.counted
    assert (counted.rows, counted.counted) == (20, True)


def test_a_planned_row_is_no_longer_than_is_allowed(tmp_path: Path) -> None:
    """`plan.tokens` above `train.max_length` is cut as a row would be."""
    planned = lengths(project(tmp_path, plan={"rows": 5, "tokens": 9000}))

    assert (planned.mean_tokens, planned.longest_tokens) == (256, 256)


def test_rows_to_score_may_be_planned_beside_rows_that_are_here(tmp_path: Path) -> None:
    """Where only the held-out file is absent, the table stands for that one alone."""
    write(tmp_path / "train.jsonl", rows(20))
    data = {
        "train": "train.jsonl", "eval": "eval.jsonl", "prompt": "{text}", "completion": "{label}",
    }  # fmt: skip
    found = lengths(project(tmp_path, data=data, plan=PLAN))

    assert (found.rows, found.eval_rows, found.answer_tokens) == (20, 100, 8)
    assert found.counted


def test_each_number_of_the_table_plan_changes_the_hours(tmp_path: Path) -> None:
    """Rows, tokens, the answer's tokens and the rows to score are all counted with."""
    data = {
        "train": "train.jsonl", "eval": "eval.jsonl", "prompt": "{text}", "completion": "{label}",
    }  # fmt: skip
    table = {"kind": "label", "labels": ["good", "bad"]}

    def hours(**changes: int) -> float:
        loaded = project(tmp_path, data=data, eval=table, plan={**PLAN, **changes})
        job = estimate_job(loaded, "T4")
        assert job.hours is not None
        return job.hours.likely

    base = hours()
    assert hours(rows=7000) > base
    assert hours(tokens=180) > base
    assert hours(answer_tokens=80) > base
    assert hours(eval_rows=10_000) > base


def test_a_plan_goes_on_without_the_rows_and_a_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qft plan` says what it counted with; `qft run` refuses, as it does without the table."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    loaded = project(tmp_path, plan=PLAN)

    assert make_plan(str(loaded.path)).estimate is not None
    assert absent_files(loaded) == [tmp_path / "train.jsonl"]
    with pytest.raises(UsageError, match="the data or the model cannot be used"):
        check_data_and_model(loaded)
    with pytest.raises(UsageError, match="the data or the model cannot be used"):
        make_plan(str(project(tmp_path).path))


def test_rows_that_are_here_are_checked_beside_a_table_plan(tmp_path: Path) -> None:
    """The table excuses what is absent, and no broken row."""
    loaded = project(tmp_path, plan=PLAN)
    (tmp_path / "train.jsonl").write_text("{broken\n")

    with pytest.raises(UsageError) as caught:
        check_data_and_model(loaded, absent=absent_files(loaded))
    assert "not JSON" in " ".join(caught.value.problems)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"rows": 0, "tokens": 5}, "plan.rows"),
        ({"rows": 5}, "plan.tokens"),
        ({"rows": 5, "tokens": 5, "row": 5}, "plan.row"),
    ],
)
def test_a_wrong_table_plan_is_refused(tmp_path: Path, table: dict[str, int], word: str) -> None:
    """A number that is none, one that is missing, and a name that is not known are named."""
    with pytest.raises(UsageError) as caught:
        project(tmp_path, plan=table)
    assert word in " ".join(caught.value.problems)


def test_a_rehearsal_counts_rows_as_a_rented_card_does(tmp_path: Path) -> None:
    """This computer has hours of its own for the same rows."""
    write(tmp_path / "train.jsonl", rows(50))
    here, card = (estimate_job(project(tmp_path), name) for name in (HERE, "T4"))

    assert here.trained_tokens == card.trained_tokens
    assert here.hours is not None
