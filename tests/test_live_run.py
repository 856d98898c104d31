"""`qft report --live` follows a real run of another terminal, and ends with Ctrl-C."""

from __future__ import annotations

import http.client
import json
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.recorded import RUN, lay_out
from support.runs import TIMEOUT_S, Project, json_of, make_project, wait_until

UPDATE_S = 5.0
"""How long after a step the page may show it."""
STEP = re.compile(r"<td>step</td>\s*<td>([\d,]+) of")


def url_of(process: subprocess.Popen[str]) -> str:
    """The address that a live page printed."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Type Ctrl-C; return the exit code and what was said."""
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, message


def events(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a live page as they come: name and data."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", address.port or 0, timeout=TIMEOUT_S)
    connection.request("GET", f"{address.path}events")
    answer = connection.getresponse()
    assert answer.status == 200
    name = ""
    while line := answer.readline().decode():
        if line.startswith("event: "):
            name = line.removeprefix("event: ").strip()
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
    connection.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of an earlier version that was cut off, without its machine."""
    return lay_out(tmp_path_factory.mktemp("recorded") / "project", machine=False)


def test_a_run_that_was_never_fetched_is_shown_and_ctrl_c_ends_the_page(recorded: Project) -> None:
    """`qft report` refuses it, `--live` shows what its checkpoint at home tells; exit 0."""
    refused = recorded.qft("report", RUN)
    live = recorded.start("report", "--live", RUN)
    url = url_of(live)
    name, data = next(events(url))
    code, message = interrupt(live)

    assert refused.returncode == 2
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32,}/", url)
    assert name == "sections"
    assert {"live", "curves", "machine", "summary"} <= set(data["sections"])
    assert "nothing was recorded" not in data["sections"]["curves"]
    assert "of 160" in data["sections"]["headline"]
    assert "nobody: `qft run recorded` goes on" in data["sections"]["live"]
    assert code == 0, message
    assert "only this computer can open it" in message
    assert not (recorded.out / "report.html").exists()


def test_the_address_of_a_live_page_is_json_for_a_script(recorded: Project) -> None:
    """With `--json` the first thing on stdout is an object with `url`, and the page is there."""
    live = recorded.start("report", "--live", "--json", RUN)
    assert live.stdout is not None
    url = json.loads("".join(live.stdout.readline() for _ in range(3)))["url"]
    assert next(events(url))[1]["version"] >= 1
    assert interrupt(live)[0] == 0


def test_a_run_that_is_none_is_refused(recorded: Project) -> None:
    """A wrong name is the user's mistake: exit 2, with the names there are."""
    refused = recorded.qft("report", "--live", "other", "--json")

    assert refused.returncode == 2
    assert "recorded" in json_of(refused)["error"]


@pytest.mark.slow
def test_a_step_of_a_real_run_is_on_the_page_within_five_seconds(tmp_path: Path) -> None:
    """From the trainer's log on the machine to the browser; at its end the page is a file."""
    project = make_project(
        tmp_path / "project", train={"steps": 600}, vm={"rehearse_evictions": [150]}
    )
    driver = project.start("run", "--json")
    try:
        journal = project.home / "runs" / project.name / "journal.jsonl"
        wait_until(lambda: driver.poll() is not None or journal.exists())
        live = project.start("report", "--live")
        written: dict[int, float] = {}
        over = threading.Event()
        watcher = threading.Thread(target=note_steps, args=(project, written, over))
        watcher.start()
        shown: dict[int, float] = {}
        for name, data in events(url_of(live)):
            if found := STEP.search(data["sections"].get("live", "")):
                shown.setdefault(int(found[1].replace(",", "")), time.monotonic())
            if name == "end":
                break
        over.set()
        watcher.join()
        out, message = driver.communicate(timeout=TIMEOUT_S)
        code, messages = interrupt(live)
    finally:
        project.tidy()

    assert driver.returncode == 0, message
    assert json.loads(out)["evictions"] == 1
    lags = lags_of(written, shown)
    assert len(lags) > 5
    assert statistics.median(lags) < UPDATE_S, sorted(lags)
    assert max(shown) == 600
    assert code == 0
    assert "its page is written" in messages
    assert (project.out / "report.html").stat().st_size > 10_000


def note_steps(project: Project, written: dict[int, float], over: threading.Event) -> None:
    """Note when each step was first seen in the log on the machine."""
    while not over.wait(0.05):
        for log in project.home.glob("local/vms/*/disk/qft/*/run/metrics.jsonl"):
            try:
                count = log.read_bytes().count(b"\n")
            except OSError:  # it is just being replaced
                continue
            now_s = time.monotonic()
            for step in range(max(written, default=0) + 1, count + 1):
                written[step] = now_s


def lags_of(written: dict[int, float], shown: dict[int, float]) -> list[float]:
    """For each update but the first, seconds since the oldest step that it brought was written."""
    steps = sorted(shown)
    return [
        shown[step] - written[before + 1]
        for before, step in pairwise(steps)
        if before + 1 in written and shown[step] > shown[before]
    ]
