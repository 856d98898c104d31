"""Several data sets are learnt by their weights, as a pure function of seed and epoch."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.rig import saves_in_step
from support.runs import Project, make_project

from commands.runs import config_diff, session
from commands.runs.config import check_data_and_model, load
from commands.runs.home import RunFolder
from commands.runs.local_trainer import local_run_dir
from commands.runs.payload import build_payload
from commands.runs.planning.row_lengths import usual_tokens
from commands.runs.result_files import STEPS_MAX, expected
from commands.ui.errors import UsageError
from trainer.__main__ import main
from trainer.config import TrainerConfig, TrainTable
from trainer.config_errors import describe_errors
from trainer.data_table import DataTable
from trainer.errors import DataError, Preempted
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.pages.audit import as_page, as_text, audit
from trainer.pages.audit_sets import set_lines
from trainer.results.base_name import BaseName
from trainer.results.publish import model_card
from trainer.rundir.fingerprint import compare
from trainer.rundir.layout import data_facts, training_facts
from trainer.saving.checkpointer import Checkpointer
from trainer.schedule import Share, batches, draw, make_schedule, rows_per_epoch
from trainer.scoring.rescore import rescore

sets = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.25])),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=60)
@given(given_sets=sets, seed=st.integers(0, 99), epoch=st.integers(0, 9), group=st.booleans())
def test_each_row_stands_in_an_epoch_as_its_weight_says(
    given_sets: list[tuple[int, float]], seed: int, epoch: int, *, group: bool
) -> None:
    """Every row comes the whole number of its weight often, and a share of them once more."""
    shares = [Share(rows=rows, weight=weight) for rows, weight in given_sets]
    lengths = [1 + at % 7 for at in range(sum(share.rows for share in shares))]
    rows = draw(seed, epoch, shares)
    cut = batches(seed, epoch, lengths, 4, group=group, rows=rows)
    counts = Counter(row for batch in cut for row in batch)
    first = 0

    assert counts == Counter(rows)
    assert sum(counts.values()) == rows_per_epoch(shares)
    for share in shares:
        found = [counts[row] for row in range(first, first + share.rows)]
        assert {int(share.weight), int(share.weight) + 1} >= set(found)
        assert abs(sum(found) - share.weight * share.rows) <= max(0.5, 1 - share.weight)
        first += share.rows


def test_a_part_of_the_rows_is_drawn_anew_in_every_epoch() -> None:
    """Half of the rows are others each time, by seed and epoch alone; in the end all come."""
    half = [Share(rows=40, weight=0.5)]
    epochs = [frozenset(draw(7, epoch, half)) for epoch in range(12)]

    assert {len(rows) for rows in epochs} == {20}
    assert len(set(epochs)) == 12
    assert frozenset.union(*epochs) == set(range(40))
    assert [*epochs] == [frozenset(draw(7, epoch, half)) for epoch in range(12)]
    assert frozenset(draw(8, 0, half)) != epochs[0]


def test_copies_of_a_row_lie_apart() -> None:
    """A row that stands twice in an epoch has two places of its own, not neighbours."""
    order = [row for (row,) in batches(0, 0, [1] * 50, 1, group=False, rows=[*range(50)] * 2)]
    apart = [len(order) - 1 - order[::-1].index(row) - order.index(row) for row in range(50)]

    assert sum(apart) / 50 == pytest.approx(100 / 3, rel=0.3)  # as of two random places


def test_one_set_of_weight_one_has_the_order_that_it_always_had() -> None:
    """Listed or not, the schedule is the same, and so are epochs of several sets of weight 1."""
    lengths = [3, 1, 2, 5, 4, 9, 8, 7]
    table = TrainTable(batch_size=3, epochs=2)
    plain = make_schedule(table, lengths)
    listed = make_schedule(table, lengths, [Share(rows=8)])
    divided = make_schedule(table, lengths, [Share(rows=3), Share(rows=5)])

    for step in range(plain.steps):
        assert plain.batch(step) == listed.batch(step) == divided.batch(step)
        assert (
            plain.batch(step)
            == batches(0, plain.locate(step).epoch, lengths, 3, group=True)[
                plain.locate(step).index
            ]
        )


def test_epochs_are_counted_with_the_weights() -> None:
    """Two epochs of 10 rows twice and 10 rows half are 50 rows, so 13 steps of four."""
    schedule = make_schedule(
        TrainTable(batch_size=4, epochs=2),
        [1] * 20,
        [Share(rows=10, weight=2), Share(rows=10, weight=0.5)],
    )

    assert (schedule.locate(6).index, schedule.steps) == (6, 14)


def lay_out(folder: Path, files: object, /, **tables: Any) -> Path:
    """Lay out a run that learns from `a.jsonl`, `b.jsonl` or both."""
    run = tiny.make_run(folder, rows=12, **{"train": {"steps": 6}, **tables})
    tiny.make_rows(folder / "a.jsonl", 12)
    lines = tiny.make_rows(folder / "b.jsonl", 19).read_text().splitlines()[12:]
    (folder / "b.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = files
    return tiny.write_config(run, config)


A, B = "../a.jsonl", "../b.jsonl"
WEIGHTED = [{"path": A, "weight": 2}, {"path": B, "weight": 0.5}]


def trained(run: Path) -> list[str]:
    """Train in this process; return the messages."""
    messages: list[str] = []
    with saves_in_step():
        run_job(JobOptions(run_dir=run), messages.append)
    return messages


def test_weighted_sets_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGTERM in the second epoch, a run over two sets ends with the same adapter."""
    tables = {"train": {"steps": 12, "batch_size": 4}}
    whole, cut = (lay_out(tmp_path / name, WEIGHTED, **tables) for name in ("whole", "cut"))
    messages = trained(whole)
    after_step = Checkpointer.after_step

    def stop_after_eight(self: Checkpointer, record: dict[str, Any]) -> None:
        after_step(self, record)
        if record["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", stop_after_eight)
        with pytest.raises(Preempted):
            trained(cut)
    trained(cut)

    assert messages[0].startswith("19 rows (28 in an epoch), 12 steps of 4")
    assert [line["epoch"] for line in tiny.losses(whole)] == [0] * 7 + [1] * 5
    assert tiny.losses(whole) == tiny.losses(cut)
    assert tiny.adapter_bytes(whole) == tiny.adapter_bytes(cut)
    assert main(["verify", "--run-dir", str(cut)]) == 0


def test_one_file_gives_the_same_run_however_it_is_listed(tmp_path: Path) -> None:
    """A path and a list of it have the same facts, bits and receipt; a finished run stays done."""
    run = lay_out(tmp_path, A)
    trained(run)
    before = tiny.adapter_bytes(run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = [{"path": A, "weight": 1}]
    tiny.write_config(run, config)

    assert trained(run) == ["everything is done already: nothing to do"]
    assert tiny.adapter_bytes(run) == before


@pytest.mark.parametrize(
    ("train", "keys"),
    [
        ([{"path": A, "weight": 3}, B], ["data.train.0.weight"]),
        ([B, A], ["data.train.0", "data.train.1"]),
        (A, ["data.train", "data.train.0", "data.train.1"]),
    ],
)
def test_other_sets_or_weights_are_another_run(
    train: object, keys: list[str], tmp_path: Path
) -> None:
    """Each file's digest and weight is a fact of its own, which a resume names."""
    configs = [
        TrainerConfig.model_validate(tiny.make_config(Path("m"), Path("t"), data={"train": one}))
        for one in ([A, B], train)
    ]
    lay_out(tmp_path, A)
    old, new = ({"data": data_facts(config, tmp_path / "run")} for config in configs)
    refused = compare(old, new, allowed=()).refused

    assert all(any(line.startswith(f"{key}: was ") for line in refused) for key in keys), refused
    assert training_facts(configs[0], old["data"]) != training_facts(configs[1], new["data"])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "data.train: List should have at least 1 item after validation, not 0"),
        ([{"path": "a", "weight": 0}], "data.train.0.weight: Input should be greater than 0"),
        ([{"path": "a", "weight": -1}], "data.train.0.weight: Input should be greater than 0"),
        (
            ["a", {"path": "b", "wight": 2}],
            "data.train.1.wight: unknown key; did you mean `weight`?",
        ),
        ([{"weight": 2}], "data.train.0.path: Field required"),
        (["a", "b", "a"], "data.train: `a` is listed twice: list it once, with a `weight`"),
        (["a", "hub:b"], "data.train.1: `hub:b` is no file on a hub"),
        ([5], "data.train.0: Input should be a valid dictionary"),
        ({"path": "a"}, "data.train: Input should be a valid string"),
    ],
)
def test_a_faulty_list_is_named_with_its_place(train: object, message: str) -> None:
    """Every fault of a list says which entry and key it is about."""
    raw = tiny.make_config(Path("m"), Path("t"), data={"train": train})

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is compared
        TrainerConfig.model_validate(raw)
    (line,) = describe_errors(caught.value, TrainerConfig)  # type: ignore[arg-type]
    assert line.startswith(message)


def test_problems_of_all_files_are_listed_at_once(tmp_path: Path) -> None:
    """Rows are named with the file that they stand in."""
    run = lay_out(tmp_path, [A, B])
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(path.read_text() + '{"text": "no mood"}\n')

    with pytest.raises(DataError) as caught:
        trained(run)
    assert [problem.partition(": ")[0].rpartition("/")[2] for problem in caught.value.problems] == [
        "a.jsonl:13", "b.jsonl:8"
    ]  # fmt: skip


def test_the_audit_shows_each_set_and_names_its_file(tmp_path: Path) -> None:
    """Weights, rows of an epoch and what is left out are told by file, in text and page."""
    run = lay_out(tmp_path, WEIGHTED)
    (tmp_path / "eval.jsonl").write_text((tmp_path / "b.jsonl").read_text().splitlines()[0] + "\n")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"eval": "../eval.jsonl", "too_long": "drop"}
    config["train"]["max_length"] = 50
    tiny.write_config(run, config)
    found = audit(TrainerConfig.model_validate(config), run, tiny.make_tokenizer(), seq2seq=False)

    assert "  a.jsonl: 9 rows of weight 2, 18 in an epoch\n" in as_text(found)
    assert "  b.jsonl: 4 rows of weight 0.5, 2 in an epoch\n" in as_text(found)
    rows = "row a.jsonl:7, a.jsonl:8, a.jsonl:9, b.jsonl:4"
    assert f"dropped as too long, to learn from: 6, {rows}" in as_text(found)
    assert found.duplicates.across == (("b.jsonl:1", 1),)
    assert [one["weight"] for one in found.train["sets"]] == [2, 0.5]
    assert "b.jsonl: 4 rows of weight 0.5" in as_page(found, "sets")


def test_files_of_one_name_are_named_with_their_folders() -> None:
    """Rows of `a/rows.jsonl` and `b/rows.jsonl` are named with the folder, others without."""
    side = {"rows": 1, "weight": 1.0, "rows_per_epoch": 1}

    for paths, names in (
        (["a/rows.jsonl", "b/rows.jsonl"], ["a/rows.jsonl", "b/rows.jsonl"]),
        (["a/rows.jsonl", "b/more.jsonl"], ["rows.jsonl", "more.jsonl"]),
    ):
        lines = set_lines({"sets": [{**side, "path": path} for path in paths]})
        assert [line.partition(":")[0].strip() for line in lines] == names


def test_scores_learn_their_baselines_from_all_sets(tmp_path: Path) -> None:
    """A label that stands in the second file alone is known to them, and one beside is named."""
    tables = {"eval": {"kind": "label", "labels": [*tiny.MOODS]}, "data": {"eval": A}}
    run = lay_out(tmp_path, [A, B], **tables)
    found = rescore(run, None, on_progress=lambda _done, _total: None)
    path = tmp_path / "b.jsonl"
    path.write_text(path.read_text() + '{"text": "x", "mood": "furious"}\n')

    assert found["n"] == 12
    with pytest.raises(DataError, match=r"b\.jsonl:8: .*furious"):
        rescore(run, None, on_progress=lambda _done, _total: None)


def test_the_card_names_every_file_with_its_weight(tmp_path: Path) -> None:
    """Places are left out, weights are not."""
    config = TrainerConfig.model_validate(
        json.loads((lay_out(tmp_path, WEIGHTED) / "config.json").read_text())
    )
    results: dict[str, Any] = {
        "facts": {}, "before": None, "after": None, "steps": 1, "baselines": {}, "merged": None,
        "training_seconds": 1, "evictions": [],
    }  # fmt: skip
    card = model_card(config, results, base=BaseName(name="b", on_hub=False), merged=False)

    assert "learnt from `a.jsonl` (weight 2), `b.jsonl` (weight 0.5)" in card


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project that learns from two files and one on a hub."""
    made = make_project(tmp_path / "project")
    rename(made, [{"path": "train.jsonl", "weight": 2}, "more/rows.JSONL.gz", "hub:a/b@c/d.jsonl"])
    (made.folder / "more").mkdir()

    packed = gzip.compress((made.folder / "eval.jsonl").read_bytes())
    (made.folder / "more" / "rows.JSONL.gz").write_bytes(packed)
    return made


def rename(project: Project, train: object) -> None:
    """Write another `data.train` into a project's run.yaml."""
    tables = yaml.safe_load(project.config.read_text())
    tables["data"]["train"] = train
    project.config.write_text(yaml.safe_dump(tables))


def test_all_files_travel_under_names_of_their_own(project: Project, tmp_path: Path) -> None:
    """Each has its place and both endings there, weights stay, what is on a hub is only named."""
    loaded = load(project.config)
    check_data_and_model(loaded)
    payload = build_payload(loaded, tmp_path / "sent")
    sent = json.loads(payload.config.read_text())
    TrainerConfig.model_validate(sent)

    assert {name: path.name for name, path in payload.data.items()} == {
        "train-0.jsonl": "train.jsonl",
        "train-1.jsonl.gz": "rows.JSONL.gz",
        "eval.jsonl": "eval.jsonl",
    }
    assert sent["data"]["train"] == [
        {"path": "../data/train-0.jsonl", "weight": 2.0},
        {"path": "../data/train-1.jsonl.gz", "weight": 1.0},
        {"path": "hub:a/b@c/d.jsonl", "weight": 1.0},
    ]


def test_an_audit_here_reads_what_the_machine_would(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run directory that `qft` lays out here holds every file, the packed one included."""
    rename(project, [{"path": "train.jsonl", "weight": 2}, "more/rows.JSONL.gz"])
    loaded = load(project.config)
    with local_run_dir(loaded, RunFolder(root=project.folder / "none")) as run_dir:
        assert main(["audit", "--run-dir", str(run_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert [(one["rows"], one["rows_per_epoch"]) for one in found["train"]["sets"]] == [
        (24, 48), (6, 6)
    ]  # fmt: skip


def test_one_file_of_two_endings_keeps_both(project: Project, tmp_path: Path) -> None:
    """A `.jsonl.gz` is still one there; without its first ending nobody could read it."""
    rename(project, "more/rows.JSONL.gz")

    assert "train.jsonl.gz" in build_payload(load(project.config), tmp_path / "sent").data


def test_faults_of_every_file_are_listed_before_renting(project: Project) -> None:
    """Rows, missing files and a file under two names are told with the key of their entry."""
    (project.folder / "train.jsonl").write_text('{"text": "no mood"}\n')
    rename(project, ["train.jsonl", "./train.jsonl", "gone.jsonl"])

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(project.config))
    problems = "\n".join(caught.value.problems)
    assert "data.train.0: " in problems
    assert "train.jsonl:1: no field `mood`" in problems
    assert "is `data.train.0` too: list it once, with a weight" in problems
    assert "gone.jsonl: there is no such file" in problems


def test_a_changed_list_is_judged_by_rows_and_weights(project: Project) -> None:
    """Renamed files are no change; other rows, weights and order are, and can never be allowed."""
    rename(project, [{"path": "train.jsonl", "weight": 2}, "eval.jsonl"])
    loaded = load(project.config)
    saved = session._saved(loaded, ())
    (project.folder / "copy.jsonl").write_bytes((project.folder / "train.jsonl").read_bytes())
    rename(project, [{"path": "copy.jsonl", "weight": 2}, "eval.jsonl"])

    assert config_diff.changes(load(project.config), saved, ()) == {}
    for train, key in (
        ([{"path": "copy.jsonl", "weight": 3}, "eval.jsonl"], "data.train: "),
        (["eval.jsonl", {"path": "copy.jsonl", "weight": 2}], "data.train.0: "),
        ("copy.jsonl", "data.train: "),
    ):
        rename(project, train)
        with pytest.raises(UsageError) as caught:
            config_diff.changes(load(project.config), saved, ())
        assert any(problem.startswith(key) for problem in caught.value.problems)
        assert all("this can never change" in problem for problem in caught.value.problems)


def test_what_comes_home_is_limited_by_all_files(project: Project) -> None:
    """Weights count as rows; of packed files and those on a hub nobody knows how many there are."""
    tables = yaml.safe_load(project.config.read_text())
    tables["train"].pop("steps")
    project.config.write_text(yaml.safe_dump(tables))
    unknown = expected(load(project.config)).steps_max
    steps = []
    for weight in (1, 3):
        rename(project, [{"path": "train.jsonl", "weight": weight}, "eval.jsonl"])
        steps.append(expected(load(project.config)).steps_max)

    assert unknown == STEPS_MAX
    assert 2 * steps[0] < steps[1] < 3 * steps[0]
    assert usual_tokens(load(project.config)) is not None


def test_a_table_with_several_files_names_each() -> None:
    """Keys are those of the config; one file of weight 1 is `train`, also where it is listed."""
    fields = {"prompt": "{a}", "completion": "{b}", "eval": "e"}
    tables = [
        DataTable.model_validate({**fields, "train": train})
        for train in ("a", ["a"], [{"path": "a", "weight": 2}], ["a", "b"])
    ]

    assert [table.files for table in tables] == [
        {"train": "a", "eval": "e"},
        {"train": "a", "eval": "e"},
        {"train.0": "a", "eval": "e"},
        {"train.0": "a", "train.1": "b", "eval": "e"},
    ]
