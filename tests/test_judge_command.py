"""`qft eval --judge` prints the cost before, keeps the key secret, and ends in sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.judge_service import JudgeService, error_body, judge_service
from support.judging import KEY, PRICES, endpoint_of
from support.scored_runs import finished_run, score_of
from typer.testing import CliRunner

from commands import eval as eval_command
from commands.eval import scores, show_judgement
from commands.runs.config import RunConfig, check
from commands.runs.fetched_run import add_results
from commands.runs.find_config import reopen
from commands.runs.home import run_folder
from commands.runs.judge.judge_run import JudgeOptions, judge_run, read_key
from commands.runs.judge.prompts import messages
from commands.runs.judge_table import JudgeTable
from commands.runs.payload import build_payload
from commands.ui.errors import Exit, QftError, StoppedError, UsageError


@pytest.fixture
def service() -> Iterator[JudgeService]:
    """Run an honest service that wants a key."""
    with judge_service(key=KEY) as running:
        yield running


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "http://judge.example/v1"}, "plain `http`"),
        ({"url": "http://127.0.0.1.evil.example/v1"}, "plain `http`"),
        ({"url": "https://me:secret@judge.example/v1"}, "may hold a key"),
        ({"url": "https://judge.example/v1?key=secret"}, "may hold a key"),
        ({"url": "ftp://judge.example"}, "whole address"),
        ({"url": "https://"}, "whole address"),
        ({"url": "https://judge.example/\nv1"}, "whole address"),
        ({"budget_usd": 1.0, "usd_per_mtok": None}, "usd_per_mtok"),
        ({"key_env": "sk-123"}, "key_env"),
        ({"key": "sk-123"}, "Extra inputs"),
    ],
)
def test_a_table_that_would_leak_or_not_work_is_refused(
    change: dict[str, Any], message: str
) -> None:
    """Addresses that show the key, keys in the file and budgets without prices are refused."""
    good = {"url": "https://judge.example/v1/", "model": "m", "usd_per_mtok": PRICES}
    assert JudgeTable.model_validate(good).url == "https://judge.example/v1"

    with pytest.raises(ValidationError, match=message):
        JudgeTable.model_validate({**good, **change})


def test_the_table_stays_at_home_and_survives_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is in what the machine gets; a saved config is read back the same."""
    monkeypatch.setenv("JK", KEY)
    settings: dict[str, Any] = {
        "name": "r", "model": {"id": "a/b"}, "data": {"train": "t.jsonl", "prompt": "{a}",
        "completion": "{b}"}, "judge": {"url": "https://judge.example/v1", "model": "judge-model",
        "key_env": "JK", "usd_per_mtok": PRICES, "budget_usd": 1.0},
    }  # fmt: skip
    config = RunConfig.model_validate(settings)

    payload = build_payload(check(settings, tmp_path / "run.yaml"), tmp_path / "staging")

    assert "judge" not in json.dumps(config.trainer_tables)
    assert "judge-model" not in payload.config.read_text(encoding="utf-8")
    sent = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in sent if KEY.encode() in path.read_bytes()]
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty home with the key in the environment."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JK", KEY)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home"


def add_run(home: Path, judge: dict[str, Any] | None, name: str = "run") -> Path:
    """Lay out a run whose tuned answers hold the word `right`."""
    results = {
        stage: score_of(
            stage,
            [
                {"row": at, "prompt": f"q{at}", "gold": f"right {at}", "free": f"{word} it is {at}",
                 "stopped": True, "score": 0.5} for at in range(4)
            ],
            kind="text",
        )
        for stage, word in (("before", "wrong"), ("after", "right"))
    }  # fmt: skip
    tables: dict[str, Any] = {"judge": judge} if judge else {}
    return finished_run(home.parent / name, home, name, **results, **tables)


def options(**more: Any) -> JudgeOptions:
    """Return options of a terminal where the answer is no."""
    fields: dict[str, Any] = {
        "yes": False, "environment": {"JK": KEY}, "on_message": lambda _text: None,
        "may_ask": lambda: True, "ask": lambda _prompt: False,
    }  # fmt: skip
    return JudgeOptions(**{**fields, **more})


def test_the_command_prints_both_tables_and_shows_the_key_nowhere(
    home: Path, service: JudgeService, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tables at 80 columns, a result beside the adapter; no file or line holds the key."""
    judge = {"url": service.url, "model": "m", "key_env": "JK"}
    out = add_run(home, judge)

    show_judgement("run", yes=False, as_json=False)
    show_judgement("run", yes=False, as_json=True)

    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines[:6])) <= 80
    assert any(line.startswith("the base ") and " 4/0/0 " in line for line in lines)
    assert any(line.startswith("right answers ") for line in lines)
    result = json.loads((out / "judge.json").read_text(encoding="utf-8"))
    assert result["tables"]["base_tuned"]["wins"] == 4
    assert result["documents"][0]["base_tuned"]["choices"] == ["B", "A"]
    assert result["documents"][0]["base_tuned"]["reasons"] == ["Checked. B", "Checked. A"]
    assert len(service.requests) == 16
    assert all(one["authorization"] == f"Bearer {KEY}" for one in service.headers)
    written = [path for path in home.parent.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in printed.out + printed.err


@pytest.mark.parametrize("status", [401, 400, 500, 200])
def test_an_error_that_repeats_the_key_does_not_show_it(
    home: Path, service: JudgeService, status: int
) -> None:
    """What the service says is printed with stars where the key stood, in verdicts as well."""
    out = add_run(home, {"url": service.url, "model": "m", "key_env": "JK"})
    seen: list[str] = []
    if status == 200:
        service.judge = lambda _answers: f"I saw {KEY}\nA"
        judge_run("run", options(on_message=seen.append))
    else:
        service.troubles = [(status, {}, error_body(f"you sent {KEY}, sir"))] * 20
        with pytest.raises(QftError) as caught:
            judge_run("run", options(on_message=seen.append, sleep=lambda _s: None))
        seen += [str(caught.value), caught.value.hint]
        assert "you sent ***, sir" in str(caught.value)

    files = [path.read_text(encoding="utf-8") for path in out.glob("judge*")]
    assert not [text for text in [*seen, *files] if KEY in text]


@pytest.fixture
def paid(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return how a run is judged by a service that charges and cannot be reached."""

    def act(judge: dict[str, Any], **more: Any) -> dict[str, Any]:
        add_run(home, {"url": "https://judge.invalid/v1", "model": "m", "key_env": "JK", **judge})
        return judge_run("run", options(**more))

    return act


def test_the_cost_is_announced_and_no_means_no(paid: Callable[..., dict[str, Any]]) -> None:
    """Before anything is sent, requests, tokens and dollars are printed; a no ends it."""
    seen: list[str] = []
    prompts: list[str] = []

    def refuse(prompt: str) -> bool:
        prompts.append(prompt)
        return False

    with pytest.raises(StoppedError, match="nothing was sent"):
        paid({"usd_per_mtok": PRICES, "budget_usd": 2.0}, on_message=seen.append, ask=refuse)

    assert len(prompts) == 1
    assert "4 rows, 16 requests" in seen[0]
    assert "about $0.00" in seen[0]
    assert "budget $2.00" in seen[0]


@pytest.mark.parametrize("more", [{"yes": True}, {"may_ask": lambda: False}])
def test_where_nobody_is_there_a_budget_is_needed(
    paid: Callable[..., dict[str, Any]], more: dict[str, Any]
) -> None:
    """With --yes, or where nobody can answer, nothing is sent unless run.yaml limits the cost."""

    def fail(_prompt: str) -> bool:
        raise AssertionError("nobody can answer")

    with pytest.raises(UsageError, match=r"judge\.budget_usd") as caught:
        paid({"usd_per_mtok": PRICES}, ask=fail, **more)

    assert "budget_usd: 1.00" in caught.value.hint


def test_what_is_missing_is_named_with_the_fix(home: Path, service: JudgeService) -> None:
    """No table, no key, a key that is none, and answers that are no words end in a sentence."""
    judge = {"url": service.url, "model": "m", "key_env": "JK"}
    add_run(home, None, "bare")
    add_run(home, judge, "run")
    add_run(home, judge, "wordless")
    result = home.parent / "wordless" / "out" / "wordless" / "eval-before.json"
    result.write_text('{"details": {}}', encoding="utf-8")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("bare", {}, "has no table `judge`"),
        ("run", {"environment": {}}, "the environment has no such variable"),
        ("run", {"environment": {"JK": "two words"}}, "is no key"),
        ("wordless", {}, "no answers in words"),
    ]

    for name, more, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            judge_run(name, options(**more))
        assert caught.value.hint
        assert "two words" not in str(caught.value)
    assert service.requests == []


def test_a_table_that_was_added_after_the_training_counts(
    home: Path, service: JudgeService
) -> None:
    """The run.yaml as it stands now names the judge, though the run began without one."""
    out = add_run(home, None)
    saved = json.loads((home / "runs" / "run" / "run.json").read_text(encoding="utf-8"))
    now = {**saved["config"], "judge": {"url": service.url, "model": "m", "key_env": "JK"}}
    (home.parent / "run" / "run.yaml").write_text(json.dumps(now), encoding="utf-8")

    judge_run("run", options())

    assert (out / "judge.json").is_file()


def test_the_budget_ends_the_command_with_its_code(
    home: Path, service: JudgeService, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was judged is printed, and the exit code says that the budget was reached."""
    prices = {"in": 1000.0, "out": 1000.0}
    judge = {"url": service.url, "model": "m", "key_env": "JK", "usd_per_mtok": prices}
    add_run(home, {**judge, "budget_usd": 0.9})

    with pytest.raises(QftError, match="budget_usd` is reached") as caught:
        show_judgement("run", yes=True, as_json=False)

    assert caught.value.exit_code == Exit.BUDGET
    assert "ended by the budget" in capsys.readouterr().out


def test_a_local_service_needs_no_key() -> None:
    """Without `key_env` no key is read and no header sent."""
    with judge_service() as service:
        judge = JudgeTable.model_validate({"url": service.url, "model": "m"})
        quiet = replace(endpoint_of(service), key=read_key(judge, {}))
        quiet.ask(messages("q", "right", "b", criteria="c", marker="[0123456789abcdef]"))

        assert "authorization" not in service.headers[0]
        assert judge.free


def test_a_result_is_shown_until_the_answers_change(
    home: Path, service: JudgeService, tmp_path: Path
) -> None:
    """`qft eval` and the report have the tables of a judge, but none of earlier answers."""
    out = add_run(home, {"url": service.url, "model": "m", "key_env": "JK", "rows": 3})
    judge_run("run", options())

    shown = scores("run", again=False, on_message=print)
    assert shown.to_json()["judge"]["tables"]["base_tuned"]["wins"] == 3
    assert any(line.startswith("the base ") for line in shown.lines())
    add_results(tmp_path, reopen(run_folder(home, "run")))
    assert (tmp_path / "judge.json").is_file()

    text = (out / "eval-after.json").read_text(encoding="utf-8")
    (out / "eval-after.json").write_text(text.replace("right it is", "never"), encoding="utf-8")
    assert scores("run", again=False, on_message=print).judge == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "--again"], "are two commands"),
        (["--yes"], "goes with `--judge`"),
        (["--compare", "a", "b", "--judge"], "takes two runs"),
        (["c", "--compare", "a", "b"], "takes two runs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    """Nothing that was typed is ignored silently."""
    done = CliRunner().invoke(eval_command.app, arguments)

    assert isinstance(done.exception, UsageError)
    assert message in done.exception.message
    assert done.exception.hint
