"""A notice, however it comes, becomes a flag with a deadline, and every notice ends well."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.http_server import QuietServer
from support.imdsv2 import INTERRUPTION_PATH, REBALANCE_PATH, Imds, serving
from support.runs import wait_until

from trainer.__main__ import main
from trainer.eviction import MetadataPoll, PreemptionFlag, on_signals
from trainer.notices.azure import NOTICE_S, NOTICE_S_MAX, fetch_events, preemption_in
from trainer.saving.checkpointer import Checkpointer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAIT_S_MAX = 300.0


def event(**changes: Any) -> dict[str, Any]:
    """Return a preemption as Azure spells it, 30 s from NOW."""
    return {
        "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["vm"],
        "EventStatus": "Scheduled",
        "NotBefore": format_datetime(NOW + timedelta(seconds=30), usegmt=True),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
        **changes,
    }


@contextmanager
def metadata(answers: list[Any], *, first_s: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """Serve `answers` one after another (the last one for ever); yields URL and what was asked."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.path} {self.headers.get('Metadata')}")
            if len(requests) == 1:
                time.sleep(first_s)
            answer = answers[min(len(requests), len(answers)) - 1]
            answer = answer() if callable(answer) else answer
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(500 if answer == b"500" else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def on_signal(
    url: str, *, enough: Callable[[], bool] = lambda: False, messages: list[str] | None = None
) -> PreemptionFlag:
    """Poll `url` fast until the flag is up or it is enough; the flag's own clock stands still."""
    flag = PreemptionFlag(lambda: 100.0)
    messages = [] if messages is None else messages
    poll = MetadataPoll(
        url=url,
        flag=flag,
        now=lambda: NOW,
        on_message=messages.append,
        poll_s=0.01,
        first_call_s_max=WAIT_S_MAX,
    )
    poll.start()
    wait_until(lambda: flag.notice is not None or enough())
    poll.close()
    return flag


@pytest.mark.parametrize("seconds", [0, 1, 5, 30])
def test_a_preemption_raises_the_flag_with_its_deadline(seconds: int) -> None:
    """A notice of 0, 1, 5 or 30 s is heard with just that much time left."""
    notice = event(NotBefore=format_datetime(NOW + timedelta(seconds=seconds), usegmt=True))
    with metadata([{"Events": []}, {"Events": [notice]}]) as (url, requests):
        flag = on_signal(url)

    assert flag.notice is not None
    assert flag.notice.reason == "eviction notice"
    assert flag.seconds_left == seconds
    assert set(requests) == {"/metadata/scheduledevents?api-version=2020-07-01 true"}


def test_other_events_are_no_preemption() -> None:
    """A reboot, a freeze or an odd document leave the flag down."""
    others = {"Events": [event(EventType="Reboot"), event(EventType="Freeze")]}
    with metadata([others]) as (url, requests):
        assert on_signal(url, enough=lambda: len(requests) > 3).notice is None


@pytest.mark.parametrize("broken", [b"500", b"not json", b"[]", b'{"Events": 3}', b""])
def test_a_broken_answer_is_survived(broken: bytes) -> None:
    """Errors and nonsense from the service are no notice, and the next good answer is heard."""
    with metadata([broken, broken, {"Events": [event()]}]) as (url, requests):
        flag = on_signal(url)

    assert flag.notice is not None
    assert len(requests) == 3


def test_the_slow_first_call_is_waited_for() -> None:
    """The first call may take long (minutes at Azure): it is waited for, and it counts."""
    with metadata([{"Events": [event()]}], first_s=0.5) as (url, requests):
        flag = on_signal(url)

    assert flag.notice is not None
    assert len(requests) == 1


def test_no_proxy_is_ever_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is ignored: the service is link-local."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with metadata([{"Events": [event()]}]) as (url, _):
        assert on_signal(url).notice is not None


def test_nobody_at_the_address_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a service there is simply no notice, and the user is told once."""
    messages: list[str] = []
    tried: list[str] = []

    def fetch(url: str, timeout_s: float) -> object:
        tried.append(url)
        return fetch_events(url, timeout_s)

    monkeypatch.setattr("trainer.notices.azure.fetch_events", fetch)
    flag = on_signal("http://127.0.0.1:1", enough=lambda: len(tried) > 3, messages=messages)

    assert flag.notice is None
    assert len(messages) == 1
    assert messages[0].startswith("eviction notices cannot be heard: ")


def test_an_announced_deletion_is_a_notice() -> None:
    """`Terminate` ends the machine as surely as `Preempt`."""
    assert preemption_in({"Events": [event(EventType="Terminate")]}, NOW) == 30.0


@pytest.mark.parametrize(
    ("changes", "expected_s"),
    [
        ({}, 30.0),
        ({"EventStatus": "Started", "NotBefore": ""}, 0.0),
        ({"NotBefore": ""}, NOTICE_S),
        ({"NotBefore": None}, NOTICE_S),
        ({"NotBefore": "soon"}, NOTICE_S),
        ({"NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}, 0.0),
        ({"NotBefore": "Tue, 19 Sep 2046 18:29:47 GMT"}, NOTICE_S_MAX),
        ({"NotBefore": "Sun, 01 Mar 2026 12:00:07 -0000"}, 7.0),
        ({"NotBefore": "Sun, 01 Mar 2026 13:00:07 +0100"}, 7.0),
    ],
)
def test_the_deadline_is_sane_whatever_the_event_says(
    changes: dict[str, Any], expected_s: float
) -> None:
    """Missing, unreadable, past and far times, and clocks that jumped, give a bounded deadline."""
    assert preemption_in({"Events": [event(**changes)]}, NOW) == expected_s


def test_the_earliest_of_several_preemptions_counts() -> None:
    """Two notices leave the time of the nearer one."""
    later = event(NotBefore=format_datetime(NOW + timedelta(seconds=60), usegmt=True))

    assert preemption_in({"Events": [later, event()]}, NOW) == 30.0


@pytest.mark.parametrize("document", [None, [], {}, {"Events": None}, {"Events": [1, None]}])
def test_a_document_without_events_is_no_notice(document: object) -> None:
    """Whatever stands in the document's place, nothing is announced by it."""
    assert preemption_in(document, NOW) is None


def test_signals_raise_the_flag_and_are_given_back() -> None:
    """SIGTERM sets the flag, and the handler is put back."""
    before = signal.getsignal(signal.SIGTERM)
    flag = PreemptionFlag(lambda: 100.0)
    with on_signals(flag):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT) if flag.notice is None else None

    assert flag.notice is not None
    assert flag.notice.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_nearest_of_several_ends_counts() -> None:
    """SIGTERM shortens the time of a long notice; a later end than that changes nothing."""
    flag = PreemptionFlag(lambda: 100.0)
    flag.set(seconds_left=300, reason="eviction notice")
    flag.set(seconds_left=10, reason="SIGTERM")
    flag.set(seconds_left=30, reason="eviction notice")

    assert flag.notice is not None
    assert (flag.notice.reason, flag.seconds_left) == ("SIGTERM", 10.0)


def test_a_second_interrupt_does_not_wait() -> None:
    """Ctrl-C twice leaves at once."""
    flag = PreemptionFlag(lambda: 0.0)
    with on_signals(flag):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_deadline_runs_on_the_monotonic_clock() -> None:
    """Time left counts on the flag's own clock, so a jump of the wall clock changes nothing."""
    now = [50.0]
    flag = PreemptionFlag(lambda: now[0])
    flag.set(seconds_left=30, reason="test")
    now[0] = 75.0

    assert flag.seconds_left == 5.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a run that heard of no eviction."""
    run = tiny.make_run(tmp_path_factory.mktemp("calm"), rows=12, train={"steps": 30})

    assert main(["train", "--run-dir", str(run)]) == 0
    return run


@pytest.mark.parametrize("seconds", [0, 1, 5, 30])
def test_a_notice_of_any_length_ends_well(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """A notice in mid-training ends with 75 and a saved state, and the same bits after all."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((undisturbed / "config.json").read_bytes())
    polls: list[MetadataPoll] = []
    after = Checkpointer.after_step

    def poll(**given: Any) -> MetadataPoll:
        polls.append(MetadataPoll(**given, poll_s=0.01))
        return polls[-1]

    def after_step(checkpointer: Checkpointer, record: dict[str, Any]) -> None:
        after(checkpointer, record)
        if record["step"] == 7:  # all thirty may be done before the thread that asks is woken up
            wait_until(lambda: polls[0].flag.notice is not None)

    monkeypatch.setattr("trainer.job.job.MetadataPoll", poll)
    monkeypatch.setattr(Checkpointer, "after_step", after_step)

    def answer() -> dict[str, Any]:
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        notice = event(NotBefore=format_datetime(moment, usegmt=True))
        return {"Events": [notice] if (run / "metrics.jsonl").exists() else []}

    with metadata([answer]) as (url, _):
        code = main(["train", "--run-dir", str(run), "--metadata-url", url])
    status = json.loads((run / "status.json").read_text())
    again = main(["train", "--run-dir", str(run)])

    assert (code, again) == (75, 0)
    assert (status["phase"], status["message"]) == (
        "preempted",
        "stopped by eviction notice, state saved",
    )
    assert 1 <= status["checkpoint_step"] == status["step"] <= 7
    assert tiny.losses(undisturbed) == tiny.losses(run)
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)


def test_a_recommendation_costs_one_checkpoint_and_the_notice_ends_well(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recommendation is one extra save, the notice ends with 75, and the bits are the same."""
    run = tmp_path / "run"
    run.mkdir()
    config = json.loads((undisturbed / "config.json").read_text())
    config["checkpoint"] = {"every": 1000}
    (run / "config.json").write_text(json.dumps(config))
    polls: list[MetadataPoll] = []
    saved: list[int] = []
    after, began = Checkpointer.after_step, Checkpointer._start

    def poll(**given: Any) -> MetadataPoll:
        polls.append(MetadataPoll(**given, poll_s=0.01))
        return polls[-1]

    def start(checkpointer: Checkpointer) -> None:
        saved.append(checkpointer.state.counters.step)
        began(checkpointer)

    with serving(Imds()) as imds:

        def after_step(checkpointer: Checkpointer, record: dict[str, Any]) -> None:
            if record["step"] == 4:
                imds.documents[REBALANCE_PATH] = {"noticeTime": "2026-11-29T08:19:00Z"}
                wait_until(lambda: polls[0].flag.save_requested)
            after(checkpointer, record)
            if record["step"] == 7:
                when = f"{datetime.now(UTC) + timedelta(seconds=120):%Y-%m-%dT%H:%M:%SZ}"
                imds.documents[INTERRUPTION_PATH] = {"action": "stop", "time": when}
                wait_until(lambda: polls[0].flag.notice is not None)

        with monkeypatch.context() as patch:
            patch.setattr("trainer.job.job.MetadataPoll", poll)
            patch.setattr(Checkpointer, "after_step", after_step)
            patch.setattr(Checkpointer, "_start", start)
            argv = ["train", "--run-dir", str(run), "--metadata-url", imds.url]
            code = main([*argv, "--metadata-api", "aws"])
    status = json.loads((run / "status.json").read_text())
    again = main(["train", "--run-dir", str(run)])

    assert (code, again) == (75, 0)
    assert saved == [4, 7]
    assert status["message"] == "stopped by eviction notice, state saved"
    assert tiny.losses(undisturbed) == tiny.losses(run)
    assert tiny.adapter_bytes(undisturbed) == tiny.adapter_bytes(run)
