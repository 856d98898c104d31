"""Two runs are compared on the rows that both scored, with paired intervals and their settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score
from support.scored_runs import finished_run, label_rows, score_of

from commands.eval import show_comparison
from commands.runs.comparing.compare_runs import compare_runs, verdict
from commands.runs.comparing.paired import PairedRows, paired_figures, quantile
from commands.runs.comparing.scored_run import read_scored_run
from commands.runs.home import run_folder
from commands.ui.errors import UsageError
from trainer.eval_tables.text import TextEvalTable
from trainer.scoring.answer_figures import compare_answers
from trainer.scoring.measures.all_measures import make_measures

HALF = [True, False] * 20
MORE = [True, True, True, False] * 10


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty home, the one that commands use."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home"


def add_run(home: Path, name: str, documents: list[dict[str, Any]], **more: Any) -> Path:
    """Lay out a run with a scored adapter."""
    head = {key: more.pop(key) for key in ("kind", "decoding") if key in more}
    result = score_of("after", documents, **head)
    return finished_run(home.parent / name, home, name, after=result, **more)


def compared(home: Path, first: str = "one", second: str = "two") -> Any:
    """Compare two runs as the command does."""
    runs = (read_scored_run(run_folder(home, name)) for name in (first, second))
    return compare_runs(*runs)


def test_all_rows_match_and_the_change_has_a_paired_interval(home: Path) -> None:
    """The figures are the means over the rows, and the interval is of the change row by row."""
    add_run(home, "one", label_rows(HALF))
    add_run(home, "two", label_rows(MORE))

    found = compared(home)

    figure = found.figures["accuracy"]
    assert (found.rows, found.matched_by) == (40, "words")
    assert (figure.first, figure.second, figure.change) == (0.5, 0.75, 0.25)
    assert 0 < figure.low < 0.25 < figure.high < 0.5
    assert verdict("accuracy", figure) == "second"


def test_the_interval_is_that_of_resampled_documents() -> None:
    """An interval agrees with numpy's resampling of the same differences, up to the draws."""
    values = np.random.default_rng(1).random((2, 60))
    draws = np.random.default_rng(2).integers(0, 60, size=(20_000, 60))
    means = (values[1] - values[0])[draws].mean(axis=1)

    first, second = ([(float(one), 1.0) for one in side] for side in values)
    rows = PairedRows(first=first, second=second)
    found = paired_figures({"score": rows}, range(60), resamples=4000)["score"]

    assert found.change == pytest.approx(values[1].mean() - values[0].mean(), abs=1e-12)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.01)


@pytest.mark.parametrize(
    ("table", "interval"),
    [((59, 6, 16, 80), (0.0046, 0.1186)), ((1, 1, 7, 12), (0.0256, 0.5069))],
    ids=["cavo-2012", "bentur-2009"],
)
def test_a_difference_of_shares_has_newcombes_interval(
    table: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    """The intervals are those of the R package contingencytables for its published tables."""
    both, only_first, only_second, neither = table
    sides = [
        [1.0] * both + [1.0 - at] * only_first + [float(at)] * only_second + [0.0] * neither
        for at in (0, 1)
    ]
    first, second = ([(one, 1.0) for one in side] for side in sides)
    rows = PairedRows(first=first, second=second)
    found = paired_figures({"accuracy": rows}, range(sum(table)))["accuracy"]

    assert (found.low, found.high) == pytest.approx(interval, abs=5e-5)
    assert found.interval == "newcombe"


def test_two_runs_that_agree_are_not_certainly_equal(home: Path) -> None:
    """Where both have all 22 rows right, the interval of the change is not [0, 0]."""
    for name in ("one", "two"):
        add_run(home, name, label_rows([True] * 22))

    figure = compared(home).figures["accuracy"]

    assert figure.change == 0
    assert (figure.low, figure.high) == pytest.approx((-0.149, 0.149), abs=5e-4)


def loss_of(nats: list[float], tokens: list[int]) -> dict[str, Any]:
    """Return the loss of a result with these sums of its rows."""
    rows = len(nats)
    return {
        "rows": {
            "row": list(range(1, rows + 1)), "nats": nats, "tokens": tokens, "right": [1] * rows,
            "text_nats": [one - 0.5 for one in nats], "bytes": [10] * rows,
        }
    }  # fmt: skip


def add_loss(home: Path, name: str, nats: list[float], tokens: list[int]) -> None:
    """Lay out a run of which only the loss was measured."""
    documents = [{**row, "free": None} for row in label_rows([False] * len(nats))]
    result = score_of("after", documents, kind="loss", loss=loss_of(nats, tokens))
    finished_run(home.parent / name, home, name, after=result, eval={"kind": "loss"})


def test_losses_are_compared_as_ratios_of_sums(home: Path) -> None:
    """Nats per token are all nats over all tokens, and the interval is numpy's by the same rows."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 30, size=40)
    nats = rng.random((2, 40)) * tokens
    for name, side in zip(("one", "two"), nats, strict=True):
        add_loss(home, name, side.tolist(), tokens.tolist())

    found = compared(home)

    figure = found.figures["nats_per_token"]
    assert set(found.figures) == {"nats_per_token", "bits_per_byte", "token_accuracy"}
    assert figure.first == pytest.approx(nats[0].sum() / tokens.sum(), rel=1e-12)
    draws = np.random.default_rng(6).integers(0, 40, size=(20_000, 40))
    changes = (nats[1] - nats[0])[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    assert figure.low == pytest.approx(np.quantile(changes, 0.025), abs=0.02)
    assert figure.high == pytest.approx(np.quantile(changes, 0.975), abs=0.02)
    bits = (nats[1].sum() - 20) / (np.log(2) * 400)
    assert found.figures["bits_per_byte"].second == pytest.approx(bits, rel=1e-12)
    assert verdict("nats_per_token", replace(figure, low=0.1, high=0.2)) == "first"


def test_another_tokenizer_leaves_bits_per_byte(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where right answers have other tokens, no figure per token is compared; a note says so."""
    add_loss(home, "one", [5.0, 6.0, 7.0], [5, 6, 7])
    add_loss(home, "two", [5.0, 6.0, 7.0], [5, 6, 9])

    show_comparison("one", "two", as_json=False)

    assert list(compared(home).figures) == ["bits_per_byte"]
    assert "note: the right answers have other tokens in B" in capsys.readouterr().out


def test_rows_of_one_document_are_drawn_together() -> None:
    """Four answers of each conversation are no four times as many documents."""
    differences = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    rows = PairedRows(
        first=[(0.0, 1.0)] * 32,
        second=[(one, 1.0) for one in differences for _ in range(4)],
    )
    alone = paired_figures({"score": rows}, range(32))["score"]
    together = paired_figures({"score": rows}, [at // 4 for at in range(32)])["score"]

    assert together.change == alone.change == 0.5
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_quantile_is_numpys() -> None:
    """Between two values it is interpolated as numpy does by default."""
    values = sorted(np.random.default_rng(0).normal(size=101).tolist())

    for share in (0.0, 0.025, 0.333, 0.975, 1.0):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-12)


def test_sets_of_labels_have_their_micro_f1(home: Path) -> None:
    """Micro F1 of both runs is scikit-learn's on the same sets."""
    labels = ["a", "b", "c"]
    rng = np.random.default_rng(3)
    sides = rng.random((3, 30, 3)) < 0.5
    right = [[label for label, on in zip(labels, row, strict=True) if on] for row in sides[0]]
    for name, given in (("one", sides[1]), ("two", sides[2])):
        rows = [
            {
                "row": at + 1, "prompt": f"p{at}", "gold": right[at], "free": "", "stopped": True,
                "bound": [label for label, on in zip(labels, given[at], strict=True) if on],
                "score": float((given[at] == sides[0][at]).all()),
            }
            for at in range(30)
        ]  # fmt: skip
        add_run(
            home,
            name,
            rows,
            kind="multilabel",
            decoding="bound",
            eval={"kind": "multilabel", "labels": labels},
        )

    figure = compared(home).figures["micro_f1"]

    wanted = [f1_score(sides[0], one, average="micro") for one in sides[1:]]
    assert [figure.first, figure.second] == pytest.approx(wanted, abs=1e-12)


def text_rows(answers: list[str], references: list[str], table: TextEvalTable) -> list[Any]:
    """Return the documents of free answers, with the sums that the trainer keeps."""
    measures = make_measures(table, references)
    pairs = list(zip(answers, references, strict=True))
    kept = compare_answers(measures, pairs)
    return [
        {
            "row": at + 1, "prompt": f"p{at}", "gold": right, "free": given, "stopped": True,
            **kept.document_fields(at),
        }
        for at, (given, right) in enumerate(pairs)
    ]  # fmt: skip


def test_answers_in_words_have_the_figures_of_the_trainer(home: Path) -> None:
    """Every figure of every measure is the trainer's, which is sacrebleu's and rouge-score's."""
    names = ["chrf", "bleu", "tokens_f1", "rouge_l", "exact", "contains", "number"]
    table = TextEvalTable.model_validate({"measures": names})
    right = [f"the cat number {at} sat on mat {at * 7}" for at in range(12)]
    sides = {
        "one": [f"a cat {at} sat on a mat" for at in range(12)],
        "two": [text if at % 3 else "" for at, text in enumerate(right)],
    }
    for name, answers in sides.items():
        documents = text_rows(answers, right, table)
        add_run(home, name, documents, kind="text", eval={"kind": "text", "measures": names})

    found = compared(home)

    assert set(found.figures) == set(names)
    for side, answers in (("first", sides["one"]), ("second", sides["two"])):
        kept = compare_answers(make_measures(table, right), zip(answers, right, strict=True))
        for name, figure in kept.figures(resamples=1000).items():
            assert getattr(found.figures[name], side) == pytest.approx(figure["value"], abs=1e-9)
    assert found.figures["chrf"].second == pytest.approx(
        sacrebleu.corpus_chrf(sides["two"], [right]).score, abs=1e-9
    )
    assert found.figures["exact"].interval == "newcombe"


def test_json_answers_have_the_figures_of_the_trainer(home: Path) -> None:
    """F1, precision and recall over the values of JSON, and both shares, are the trainer's."""
    table = TextEvalTable.model_validate({"measures": ["json"]})
    right = [json.dumps({"a": at, "b": [1, at], "c": "x"}) for at in range(9)]
    for name, step in (("one", 2), ("two", 4)):
        answers = [text if at % step else '{"a": 3' for at, text in enumerate(right)]
        documents = text_rows(answers, right, table)
        add_run(home, name, documents, kind="text", eval={"kind": "text", "measures": ["json"]})
    answers = [text if at % 4 else '{"a": 3' for at, text in enumerate(right)]
    kept = compare_answers(make_measures(table, right), zip(answers, right, strict=True))

    found = compared(home).figures

    wanted = {name: one["value"] for name, one in kept.figures(resamples=1000).items()}
    assert {name: one.second for name, one in found.items()} == pytest.approx(wanted)
    assert len(wanted) == 5


def test_problems_of_one_family_are_drawn_together(home: Path) -> None:
    """Programs that test variants of one problem are one document, as in the run's own gain."""
    rows = [
        {**row, "group": f"family {at // 4}"} for at, row in enumerate(label_rows([False] * 32))
    ]
    better = [{**row, "score": float(at // 4 % 2)} for at, row in enumerate(rows)]
    for name, documents in (("one", rows), ("two", better)):
        add_run(home, name, documents, kind="code", eval={"kind": "code"})

    figure = compared(home).figures["accuracy"]

    assert (figure.change, figure.interval) == (0.5, "bootstrap")
    assert figure.high - figure.low > 0.5


def test_only_common_rows_count_whatever_their_order(home: Path) -> None:
    """Rows are matched by prompt and right answer, and how many match is reported."""
    add_run(home, "one", label_rows(HALF))
    add_run(home, "two", list(reversed(label_rows([True] * 40, first=30))))

    found = compared(home)

    assert (found.rows, found.to_json()["rows_scored"]) == (10, [40, 40])
    assert found.figures["accuracy"].first == 0.5


def test_a_row_that_stands_twice_is_matched_once_each(home: Path) -> None:
    """Two equal rows of one file find two of the other, and not the first one twice."""
    twice = [{**row, "prompt": "same"} for row in label_rows([True, False])]
    add_run(home, "one", twice)
    add_run(home, "two", twice)

    found = compared(home)

    assert found.rows == 2
    assert found.figures["accuracy"].change == 0


def test_other_prompts_over_the_same_file_match_by_row(home: Path) -> None:
    """Two templates over the same held-out file are compared by the numbers of its rows."""
    rows = {"data.eval": "a" * 64}
    other = [{**row, "prompt": f"Say it: {row['prompt']}"} for row in label_rows(MORE)]
    add_run(home, "one", label_rows(HALF), rows=rows)
    add_run(home, "two", other, rows=rows, data={"prompt": "Say it: {text}"})

    found = compared(home)

    assert (found.rows, found.matched_by) == (40, "row")
    assert found.differences == {"data.prompt": ("{text}", "Say it: {text}")}


def test_settings_that_differ_are_named(home: Path) -> None:
    """Every key of training and scoring that is not the same is there with both values."""
    add_run(home, "one", label_rows(HALF), rows={"data.train": "a" * 64})
    add_run(
        home, "two", label_rows(MORE), rows={"data.train": "b" * 64},
        method={"r": 32}, train={"lr": 1e-3}, budget={"usd": 3.0},
    )  # fmt: skip

    found = compared(home).differences

    assert set(found) == {"method.r", "train.lr", "data.train"}
    assert found["method.r"] == (8, 32)
    assert found["data.train"][1] == f"train.jsonl (sha256 {'b' * 12})"


def test_the_page_fits_a_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line has at most 80 columns, also with long names and long values."""
    names = ("a" * 30, "b" * 30)
    for name, right, prompt in zip(names, (HALF, MORE), ("x " * 300, "y"), strict=True):
        add_run(home, name, label_rows(right), data={"prompt": prompt + "{text}"})

    show_comparison(*names, as_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("accuracy  0.500  0.750  +0.250") for line in lines)
    assert lines[0] == f"A  {names[0]}"


def test_json_has_all_of_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints the figures, the matched rows and the differences as one document."""
    add_run(home, "one", label_rows(HALF))
    add_run(home, "two", label_rows(HALF), train={"steps": 20})

    show_comparison("one", "two", as_json=True)

    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["one", "two"]
    assert (found["rows"], found["rows_scored"], found["matched_by"]) == (40, [40, 40], "words")
    assert found["figures"]["accuracy"]["verdict"] == "unclear"
    assert found["differences"] == {"train.steps": [10, 20]}


def test_what_cannot_be_compared_says_why_and_what_to_do(home: Path) -> None:
    """Other kinds, other rows, no score and one run twice end in a sentence with a hint."""
    add_run(home, "one", label_rows(HALF))
    add_run(home, "sets", label_rows(HALF), kind="multilabel")
    add_run(home, "far", label_rows(HALF, first=1000))
    finished_run(home.parent / "raw", home, "raw", after=None)
    torn = add_run(home, "torn", label_rows(HALF)) / "eval-after.json"
    torn.write_text(torn.read_text(encoding="utf-8")[:100], encoding="utf-8")
    wanted = {
        "sets": "is scored as `label`, `sets` as `multilabel`",
        "far": "no scored row in common",
        "raw": "`raw` has no `eval-after.json` at home",
        "torn": "cannot be read",
        "one": "is named twice",
    }

    for name, message in wanted.items():
        with pytest.raises(UsageError, match=message) as caught:
            show_comparison("one", name, as_json=False)
        assert caught.value.hint


def test_an_earlier_result_is_matched_by_row(home: Path) -> None:
    """Results of labels from before rows had prompts compare over one file, and without it not."""
    old = [
        {key: row[key] for key in ("row", "gold", "bound", "free", "stopped")}
        for row in label_rows(HALF)
    ]
    rows = {"data.eval": "a" * 64}
    add_run(home, "one", label_rows(MORE), rows=rows)
    finished_run(
        home.parent / "two", home, "two", rows=rows,
        after=score_of("after", label_rows(HALF)) | {"details": {"documents": old}},
    )  # fmt: skip

    assert compared(home).figures["accuracy"].change == -0.25
