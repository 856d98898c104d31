"""What a run logged reaches every tracker once, in order, through evictions and crashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import logged_run
from support.logged_run import LoggedRun

from commands import report, track
from commands.runs.track_table import TrackTable
from commands.runs.trackers import available
from commands.runs.trackers.mlflow import absolute_uri, chunks
from commands.runs.trackers.tracker import TrackedRow, TrackedRun
from commands.ui.errors import HostError, UsageError
from infra.run.journal import Outcome


class CrashError(Exception):
    """This computer went down."""


@dataclass
class RememberingTracker:
    """Keeps what it was sent, as often as it was sent."""

    sent: list[TrackedRow] = field(default_factory=list)
    runs: list[TrackedRun] = field(default_factory=list)
    trouble: str = ""

    def send(self, run: TrackedRun, rows: Sequence[TrackedRow]) -> None:
        """Keep the rows and the run, or raise."""
        if self.trouble:
            raise OSError(self.trouble)
        self.sent += rows
        self.runs.append(run)

    @property
    def steps(self) -> list[int]:
        """The steps that came, in the order in which they came."""
        return [row.step for row in self.sent]


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, RememberingTracker]:
    """Trackers in the place of the real ones, whose packages are not looked for."""
    made = {name: RememberingTracker() for name in ("trackio", "wandb", "mlflow")}
    monkeypatch.setattr(track, "missing", lambda _packages: [])
    monkeypatch.setattr(
        available,
        "make_trackers",
        lambda _loaded, table, _environ: {name: lambda n=name: made[n] for name in table.names},
    )
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoggedRun:
    """A run that has just begun, tracked by two trackers."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    for name, value in available.QUIET.items():
        monkeypatch.setenv(name, value)
    loaded = logged_run.config(tmp_path, track=["trackio", "mlflow"])
    return LoggedRun(tmp_path / "home", loaded)


def test_every_step_arrives_once_through_two_evictions(
    run: LoggedRun, trackers: dict[str, RememberingTracker]
) -> None:
    """Steps done again after an eviction were sent before, and are not sent again."""
    run.rent()
    run.train_to(25)
    assert track.track("logged", ()) == {"trackio": 24, "mlflow": 24}  # the last may change
    run.evict(back_to=20)
    assert track.track("logged", ()) == {"trackio": 0, "mlflow": 0}
    run.rent()
    run.train_to(23)
    track.track("logged", ())
    run.train_to(41)
    run.evict(back_to=30)
    run.rent()
    run.train_to(60)
    track.track("logged", ("mlflow",))
    run.end()
    track.track("logged", ())
    assert track.track("logged", ()) == {"trackio": 0, "mlflow": 0}

    for name in ("trackio", "mlflow"):
        assert trackers[name].steps == list(range(1, 61))
    expected = logged_run.record(20)
    row = trackers["trackio"].sent[19]
    assert row.metrics["loss"] == expected["loss"]
    assert row.metrics["validation_loss"] == expected["validation_loss"]
    assert row.metrics["tokens_per_s"] == 51.2
    assert "grad_norm" not in trackers["trackio"].sent[6].metrics
    assert trackers["trackio"].sent == trackers["mlflow"].sent


def test_rows_have_their_time_and_what_the_run_had_cost(
    run: LoggedRun, trackers: dict[str, RememberingTracker]
) -> None:
    """The clock of the journal and the seconds of the steps date them; dollars are the bill's."""
    began_s = run.now_s
    run.rent()
    run.train_to(20)
    run.evict(back_to=20)
    run.now_s += 3600  # no machine is to be had
    run.rent()
    run.train_to(60)
    run.end()
    track.track("logged", ())
    rows = trackers["mlflow"].sent

    assert [rows[0].at_s - began_s, rows[19].at_s - began_s] == [70.0, 260.0]
    assert [rows[20].at_s - began_s, rows[59].at_s - began_s] == [3935.0, 4325.0]
    assert [row.metrics["evictions"] for row in rows] == [0.0] * 20 + [1.0] * 40
    per_s = logged_run.PRICE_USD_PER_H / 3600
    assert rows[0].metrics["usd"] == pytest.approx(70 * per_s, abs=1e-6)
    assert rows[59].metrics["usd"] == pytest.approx((265 + 460) * per_s, abs=1e-6)


def test_the_ending_brings_the_scores_once(
    run: LoggedRun, trackers: dict[str, RememberingTracker]
) -> None:
    """The run is closed with its figures and its evictions; resumed, its next ending counts too."""
    run.rent()
    run.train_to(10)
    run.evict(back_to=10)
    run.end(Outcome.BUDGET_REACHED)
    track.track("logged", ())
    track.track("logged", ())
    endings = [one.ending for one in trackers["trackio"].runs if one.ending is not None]
    assert [(one.done, "after/accuracy" in one.summary) for one in endings] == [(False, False)]
    run.rent()
    run.train_to(60)
    run.end()
    track.track("logged", ())
    endings = [one.ending for one in trackers["trackio"].runs if one.ending is not None]

    assert [one.done for one in endings] == [False, True]
    assert endings[1].summary["after/accuracy"] == 0.75
    assert endings[1].summary["before/accuracy_low"] == 0.15
    assert endings[1].summary["evictions"] == 1.0
    assert endings[1].notes[0].endswith("Z, last seen at step 10")
    assert trackers["trackio"].steps == list(range(1, 61))
    assert {one.id for one in trackers["trackio"].runs} == {"logged-1a2b"}
    config = trackers["trackio"].runs[0].config
    assert (config["train.steps"], config["model.id"]) == (60, "somebody/something")


def test_many_rows_go_in_parts_and_the_ending_with_the_last(
    run: LoggedRun, trackers: dict[str, RememberingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is remembered, so that a tracker that fails in between has what it took."""
    from commands.runs.trackers import track_run

    monkeypatch.setattr(track_run, "ROWS_AT_ONCE", 25)
    run.rent()
    run.train_to(60)
    run.end()
    track.track("logged", ("mlflow",))
    tracker = trackers["mlflow"]

    assert tracker.steps == list(range(1, 61))
    assert [one.ending is not None for one in tracker.runs] == [False, False, True]


def test_after_a_crash_the_same_rows_come_again(
    run: LoggedRun, trackers: dict[str, RememberingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down between the sending and the note of it, rows come twice, equal to the last bit."""
    from commands.runs.trackers.outbox import Outbox

    def crash(*_arguments: object) -> None:
        raise CrashError

    run.rent()
    run.train_to(11)
    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "note", crash)
        with pytest.raises(HostError):
            track.track("logged", ("mlflow",))
    run.now_s += 100
    run.train_to(21)  # by which the steps would be dated otherwise
    track.track("logged", ("mlflow",))
    sent = trackers["mlflow"].sent

    assert trackers["mlflow"].steps == [*range(1, 11), *range(1, 21)]
    assert sent[:10] == sent[10:20]


def test_what_a_crash_tore_is_written_anew(
    run: LoggedRun, trackers: dict[str, RememberingTracker]
) -> None:
    """Half a row at the end of the file is no row."""
    run.rent()
    run.train_to(11)
    track.track("logged", ("mlflow",))
    path = run.folder.root / "tracked" / "logged-1a2b" / "rows.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 11, "at_s": 1.0, "metr')
    run.train_to(13)
    track.track("logged", ("mlflow",))

    assert trackers["mlflow"].steps == list(range(1, 13))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*range(1, 13)]


def test_a_tracker_that_fails_keeps_no_other_from_its_rows(
    run: LoggedRun, trackers: dict[str, RememberingTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, without the key; later it gets everything."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter22")
    trackers["trackio"].trouble = "refused hunter22 by the database"
    run.rent()
    run.train_to(11)
    with pytest.raises(HostError) as caught:
        track.track("logged", ())
    assert caught.value.problems == ["trackio: refused *** by the database"]
    assert trackers["mlflow"].steps == list(range(1, 11))
    trackers["trackio"].trouble = ""

    assert track.track("logged", ()) == {"trackio": 10, "mlflow": 0}


def test_the_checkpoint_at_home_has_rows_where_no_live_log_is(
    run: LoggedRun, trackers: dict[str, RememberingTracker]
) -> None:
    """The copy that has come furthest counts; the out folder of another run does not."""
    run.rent()
    run.train_to(30)
    (run.folder.live / "metrics.jsonl").unlink()
    run.copy_log(run.folder.checkpoints / "step-00000030" / "metrics.jsonl")
    run.copy_log(run.loaded.out / "metrics.jsonl")
    track.track("logged", ("mlflow",))

    assert trackers["mlflow"].steps == list(range(1, 30))


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (b'{"step": 2, "loss": NaN, "seconds": -4}', [1, 2, 3]),
        (b'{"step": 1, "loss": 1.0}', []),
        (b'{"step": 2, "loss": 1e400, "x": "y", "z": true, "seconds": 1e300}', [1, 2, 3]),
        (b"[" * 100_000, []),
        (b"", []),
    ],
)
def test_a_log_is_read_up_to_the_first_line_that_is_none(
    run: LoggedRun, trackers: dict[str, RememberingTracker], line: bytes, steps: list[int]
) -> None:
    """What a machine wrote is no reason to fail, and only finite numbers are sent."""
    run.rent()
    live = run.folder.live / "metrics.jsonl"
    live.parent.mkdir(parents=True)
    rows = [b'{"step": 1, "loss": 1.0}', line, b'{"step": 3}', b'{"step": 4}']
    live.write_bytes(b"".join(row + b"\n" for row in rows))
    track.track("logged", ("mlflow",))
    sent = trackers["mlflow"].sent

    assert [row.step for row in sent] == steps  # the last of a log may change, and waits
    assert all(abs(value) < 1e19 for row in sent for value in row.metrics.values())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["mlflow", "trackio"], ("trackio", "mlflow")),
        ("wandb", ("wandb",)),
        ({"mlflow": {"uri": "sqlite:///a.db"}, "wandb": {}}, ("wandb", "mlflow")),
    ],
)
def test_trackers_are_named_or_given_settings(given: Any, names: tuple[str, ...]) -> None:
    """A list takes the defaults; a table has the settings of each."""
    assert TrackTable.model_validate(given).names == names


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "name one of"),
        ({}, "name one of"),
        (["tensorboard"], "`tensorboard` is no tracker"),
        ([{"mlflow": {}}], "is no tracker"),
        ({"mlflow": {"uri": "https://me:secret@host/"}}, "MLFLOW_TRACKING_PASSWORD"),
        ({"mlflow": {"uri": "https://host/?token=a"}}, "MLFLOW_TRACKING_TOKEN"),
        ({"mlflow": {"uri": "./mlruns"}}, "no store of plain files"),
        ({"mlflow": {"uri": "sqlite:///"}}, "name a file"),
        ({"wandb": {"project": "a/b"}}, "should match pattern"),
        ({"wandb": {"api_key": "x"}}, "not permitted"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(given: Any, problem: str) -> None:
    """Each fault names the fix, and a key has no place in the file."""
    with pytest.raises(ValueError, match=problem):
        TrackTable.model_validate(given)


def test_a_run_without_trackers_says_how_to_name_one(run: LoggedRun) -> None:
    """`--to` sends to a tracker that run.yaml does not name."""
    run.save_config(logged_run.config(run.loaded.folder))
    with pytest.raises(UsageError, match="names no tracker") as caught:
        track.track("logged", ())
    assert "--to trackio" in caught.value.hint
    with pytest.raises(UsageError, match="--to tensorboard"):
        track.track("logged", ("tensorboard",))


def test_a_package_that_is_missing_is_named_with_its_extra(
    run: LoggedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint can be typed."""
    monkeypatch.setitem(available.PACKAGES, "trackio", ("no-such-package",))
    with pytest.raises(UsageError) as caught:
        track.track("logged", ("trackio",))

    assert "`no-such-package` is not installed" in caught.value.problems
    assert "install" in caught.value.hint


def test_a_database_is_beside_run_yaml(tmp_path: Path) -> None:
    """A relative name begins there, wherever the command is typed; others stay as they are."""
    assert absolute_uri("sqlite:///a/b.db", tmp_path) == f"sqlite:///{tmp_path}/a/b.db"
    assert absolute_uri("sqlite:////x/b.db", tmp_path) == "sqlite:////x/b.db"
    assert absolute_uri("https://host", tmp_path) == "https://host"
    assert [len(part) for part in chunks(range(2001), 1000)] == [1000, 1000, 1]


def test_a_report_says_how_to_open_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with a path that a shell takes, and only if there are curves."""
    page = tmp_path / "out dir" / "report.html"
    curves = page.parent / "tb"
    monkeypatch.setattr(report, "report", lambda *_arguments, **_options: page)
    report.command("logged", live=False, open_browser=False, as_json=False)
    before = capsys.readouterr()
    curves.mkdir(parents=True)
    (curves / "events.out.tfevents.1.2").write_bytes(b"")
    report.command("logged", live=False, open_browser=False, as_json=False)
    after = capsys.readouterr()

    assert (before.err, before.out) == ("", f"{page}\n")
    assert after.out == before.out
    assert after.err == f"curves: `tensorboard --logdir '{curves}' --host 127.0.0.1`\n"
