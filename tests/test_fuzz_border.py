"""Whatever a machine writes where JSON is expected, the run goes on or ends in a sentence.

Generated status files, helper answers, manifests and results go through the functions that really
read them, up to what the supervisor decides. Only the documented classes of errors may come out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakecloud import Story
from support.jsons import FUZZED, documents

from commands.runs.score import read_score, score_lines
from commands.runs.workload import SshWorkload
from commands.ui.errors import TrainingError
from commands.ui.snapshot import take_snapshot
from commands.verify import read_replay
from infra.durable import read_json
from infra.offer import Offer
from infra.provider import Observation, PowerState, Vm
from infra.run import actions as act
from infra.run.budget import bill
from infra.run.context import TurnReport
from infra.run.decide import Seen, decide
from infra.run.fold import apply, fold
from infra.run.heartbeat import SILENCE, read_heartbeat
from infra.run.journal import Event, JournalDamaged, Kind, Outcome, _plain, read
from infra.run.observer import StallDetector
from infra.run.plan import Goal, RunPlan
from infra.run.state import RunState
from infra.run.workload import HostNotTrusted, HostUnfit, HostUnreachable, JobPhase
from remote import errors
from remote.job import Job
from remote.on_machine import tree_ops
from remote.remote_script import read_answer
from remote.ssh import Host
from remote.sync import manifest, replies
from trainer.adapters.settings import read_settings
from trainer.errors import ConfigError
from trainer.notices.aws import interruption_in, recommends_rebalance
from trainer.notices.azure import preemption_in
from trainer.rundir.status import last_step
from trainer.saving.manifest import (
    ADAPTER,
    FINGERPRINT,
    LOG,
    OPTIMIZER,
    STATE,
    Damaged,
    FileFact,
    Manifest,
    directory_name,
    parse_manifest,
    verify_resumable,
)
from trainer.untrusted import NotPlain, parse

HOST = Host(address="h", user="qft", key_path=Path("/nowhere"), host_key="")
NOW_S = 1_000_000.0
SHA = "0" * 64
VM = Vm(provider="x", run_id="run-1", id="vm1", region="a", size="s", host="h")
OFFER = Offer(provider="x", region="a", size="s", spot_usd_per_h=0.2)
UP = RunState(
    run_id="run-1",
    offer=OFFER,
    vm=VM,
    generation=1,
    up=True,
    vm_started_s=NOW_S,
    prepared=True,
    launched=True,
    safeguards_set_at_s=NOW_S,
)
STATUS = {
    "version": 1,
    "phase": "training",
    "step": 3,
    "steps": 50,
    "loss": 0.5,
    "tokens_per_s": 100.5,
    "eta_s": 12.5,
    "checkpoint_step": 2,
    "resumed_from": None,
    "resumes": 1,
    "redone_steps": 0,
    "exact": True,
    "inexact_from": None,
    "message": "evaluated 3 of 4 rows",
    "error": None,
    "started_at": "2026-11-29T10:00:00.000+00:00",
    "updated_at": "2026-11-29T10:00:02.000+00:00",
    "pid": 7,
}
JOB = {
    "state": "running",
    "attempt": 1,
    "pid": 7,
    "started_at": 1.5,
    "argv": ["python", "-m", "trainer"],
    "log_bytes": 10,
}
TAIL = {"data": "bG9n", "offset": 3, "status": JOB}
LISTING = {
    "files": {"adapter/qft.json": [4, SHA], "metrics.jsonl": [9, SHA]},
    "irregular": [["adapter", "link"]],
    "unmatched": [1, ["trainer.py"]],
    "exists": True,
}
COMMITTED = {"damaged": ["a"], "absent": []}
BEGUN = {"partial": {"blob": [SHA, SHA]}, "error": "no-space", "needed": 5, "free": 1}


@dataclass(frozen=True)
class Stranger:
    """A connection to a machine that answers every call with the same bytes."""

    printed: bytes
    code: int = 0
    host: Host = HOST

    def run(self, *_words: object, **_more: object) -> errors.CommandResult:
        """Answer a command as the line would hand it on."""
        return errors.CommandResult(
            exit_code=self.code, stdout=self.printed.decode("utf-8", "replace"), stderr=""
        )

    def stream(
        self, _command: str, take: Callable[[bytes], object], **_more: object
    ) -> tuple[int, bytes]:
        """Answer as our helper does."""
        take(tree_ops.ANSWER_MARK.encode() + self.printed)
        return self.code, b""


def workload(connection: Stranger, status: bytes = b"") -> SshWorkload:
    """The real workload over such a connection; the status file has `status` if that is given."""
    config = SimpleNamespace(
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        brings_home=False,
        layout=SimpleNamespace(run_dir="qft/x/run", job="qft/x/job"),
        home=Path("/nowhere"),
        expected=lambda: None,
        on_message=lambda _text: None,
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    vars(work)["_open"] = lambda _vm: replace(connection, printed=status or connection.printed)
    answer_with(work, connection)
    return work


def outcome(call: Callable[[], object], *kinds: type[Exception]) -> object:
    """What a call returns or raises, if it is of one of these kinds; all others end the test."""
    try:
        return call()
    except kinds as error:
        return error


def is_sane(found: object) -> bool:
    """Whether words that a person may see are short and can be shown in any encoding."""
    return len(str(found)) < 100_000 and bool(str(found).encode("utf-8", "backslashreplace"))


def answer_with(work: SshWorkload, connection: Stranger) -> None:
    """Let every question about the job be answered so from now on."""
    vars(work)["_job"] = lambda _vm: Job(connection=connection, directory="qft/x/job")  # type: ignore[arg-type]


@FUZZED
@given(printed=documents(STATUS))
def test_any_status_leads_to_a_decision(printed: bytes) -> None:
    """What the trainer's status may be, the supervisor decides, reports and writes it down."""
    work = workload(Stranger(json.dumps(JOB).encode()), status=printed or b" ")
    job = StallDetector(now_s=NOW_S).with_durations(work.job_status(VM), NOW_S + 1)
    seen = Seen(machine=Observation(power=PowerState.RUNNING, host="h"), job=job)
    plan = RunPlan(goal=Goal.RUN)
    action = decide(UP, seen, plan, NOW_S + 1)
    noted = _plain({"step": job.step, "steps": job.steps})
    after = apply(UP, Event(number=1, at_s=NOW_S, kind=Kind.PROGRESS, data=noted))
    used = bill(after, NOW_S + 1)
    shown = take_snapshot(
        TurnReport(state=after, seen=seen, action=action, bill=used, now_s=NOW_S + 1),
        simulated=True,
    )

    assert isinstance(action, act.Action)
    assert shown.line.isprintable()
    assert json.loads(json.dumps(job.heartbeat.to_json(), allow_nan=False)) is not None
    assert len(str(asdict(job.heartbeat))) < 5000


@FUZZED
@given(printed=documents(TAIL) | documents(JOB), code=st.sampled_from([0, 0, 3, 1, 97, 127, -1]))
def test_any_answer_about_a_job_is_read_or_a_failed_act(printed: bytes, code: int) -> None:
    """A wrong answer is a class that the supervisor knows, never anything else."""
    connection = Stranger(printed, code)
    job = Job(connection=connection, directory="qft/x/job")  # type: ignore[arg-type]  # it only answers
    work = workload(connection)
    calls: list[Callable[[], object]] = [job.status, job.tail, job.stop]
    calls.append(lambda: job.start(["x"], env={}, cwd="."))
    for call in calls:
        assert is_sane(outcome(call, errors.RemoteError))
    for _ in range(3):
        assert is_sane(
            outcome(lambda: work.job_status(VM), HostUnreachable, HostUnfit, HostNotTrusted)
        )


@FUZZED
@given(printed=documents(LISTING) | documents(COMMITTED) | documents(BEGUN))
def test_any_answer_about_files_is_read_or_refused(printed: bytes) -> None:
    """Lists, chunks and commits are plain bounded values afterwards, or a `RemoteError`."""
    include = r"metrics\.jsonl|adapter/[a-z.]+"
    answer = outcome(lambda: read_answer(printed, verb="x", source="h"), errors.Garbled)
    assert isinstance(answer, dict | errors.Garbled)
    if isinstance(answer, errors.Garbled):
        return
    assert replies.read_free(answer) >= 0
    assert (replies.read_disk_full(answer) is None) is ("error" not in answer)
    calls: list[Callable[[], object]] = [
        lambda: replies.read_failed_paths(answer, sent=["a"], host="h"),
        lambda: replies.read_chunk_hashes(answer, "partial", names=["blob", "other"], host="h"),
    ]
    for call in calls:
        assert is_sane(outcome(call, errors.Garbled))
    found = outcome(
        lambda: replies.read_listing(answer, include=include, host="h"), errors.Untrusted
    )
    if isinstance(found, replies.RemoteListing):
        assert all(manifest.is_included(path, include) for path in found.tree)
        assert all(name.isprintable() for name in found.unmatched_names)


@FUZZED
@given(printed=documents(Manifest(step=3, files={}).__dict__ | {"format": "qft-checkpoint"}))
def test_any_manifest_is_read_or_damaged(printed: bytes) -> None:
    """Nothing but `Damaged` comes out of a manifest, and nothing out of the end of a log."""
    with suppress(Damaged):
        parse_manifest(printed)
    assert last_step(printed + b"\n") is None or isinstance(last_step(printed + b"\n"), int)


@FUZZED
@given(
    state=documents({"counters": {"step": 2}, "optimizer": {}}),
    log=documents({"step": 2, "loss": 1.0}),
    tensors=documents({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
)
def test_any_contents_under_a_right_manifest_are_whole_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, state: bytes, log: bytes, tensors: bytes
) -> None:
    """A checkpoint whose hashes are right may still hold anything."""
    folder = tmp_path_factory.mktemp("c") / directory_name(2)
    folder.mkdir()
    framed = len(tensors).to_bytes(8, "little") + tensors + b"1234"
    contents = {ADAPTER: framed, OPTIMIZER: tensors, STATE: state, LOG: log, FINGERPRINT: b"{}"}
    facts = {}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        facts[name] = FileFact(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_bytes(Manifest(step=2, files=facts).to_bytes())
    found = outcome(lambda: verify_resumable(folder), Damaged)

    assert isinstance(found, Damaged) or (found == Manifest(step=2, files=facts))


@FUZZED
@given(
    score=documents({"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}),
    settings=documents(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "task_type": None}
    ),
    replay=documents(
        {
            "after_step": 2,
            "steps": 1,
            "equal": False,
            "first_difference": {"step": 3, "key": "loss", "logged": 1.0, "replayed": 2.0},
            "params": None,
            "caveats": ["gpu"],
        }
    ),
)
def test_any_result_that_came_home_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, score: bytes, settings: bytes, replay: bytes
) -> None:
    """Scores, an adapter's settings and a replay's answer are plain values or a sentence."""
    folder = tmp_path_factory.mktemp("r")
    (folder / "eval.json").write_bytes(score)
    (folder / "adapter_config.json").write_bytes(settings)
    found = read_score(folder / "eval.json")
    assert found is None or str(found).isprintable()
    assert all(line.isprintable() for _, line in score_lines(found, found))
    with suppress(ConfigError):
        reported = read_settings(folder)
        assert 1 <= reported.r <= 1024
    with suppress(TrainingError):
        json.dumps(asdict(read_replay(replay.decode("utf-8", "replace"), code=0)), allow_nan=False)


@FUZZED
@given(
    printed=documents(
        {
            "Events": [
                {"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": "Mon, 1 Jan"}
            ],
            "action": "stop",
            "time": "2026-11-29T08:22:00Z",
            "noticeTime": "2026-11-29T08:20:00Z",
        }
    )
)
def test_any_answer_of_a_metadata_service_is_a_notice_or_none(printed: bytes) -> None:
    """Seconds within bounds, or nothing."""
    from datetime import UTC, datetime

    with suppress(NotPlain):
        document, now = parse(printed, bytes_max=1 << 20), datetime.now(UTC)
        for left_s in (preemption_in(document, now), interruption_in(document, now)):
            assert left_s is None or 0 <= left_s <= 3600
        assert recommends_rebalance(document) in {True, False}


@FUZZED
@given(
    line=documents({"v": 1, "n": 1, "at": 5.5, "kind": "run_started", "run_id": "a", "name": "b"})
)
def test_any_line_of_a_journal_folds_or_is_called_damaged(
    tmp_path_factory: pytest.TempPathFactory, line: bytes
) -> None:
    """A file of ours that somebody edited is an error that names it, never a traceback."""
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    path.write_bytes(line + b"\n")

    assert isinstance(outcome(lambda: fold(read(path)), JournalDamaged), RunState | JournalDamaged)
    plain = outcome(lambda: read_json(path), ValueError)
    assert not isinstance(plain, ValueError) or is_sane(plain)


def test_a_status_nested_200_000_deep_is_no_heartbeat() -> None:
    """The first of the reported inputs: it ended the driver while the machine billed on."""
    printed = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"

    assert read_heartbeat(printed) == SILENCE
    assert workload(Stranger(json.dumps(JOB).encode()), printed.encode()).job_status(VM).step == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"damaged": 5, "absent": []},
        {"damaged": None, "absent": []},
        {"damaged": []},
        {"damaged": [], "absent": ["../../x"]},
        {"damaged": [["a"]], "absent": []},
        {},
    ],
)
def test_a_commit_without_what_is_in_place_is_garbled(answer: dict[str, Any]) -> None:
    """Every file is taken as not there, and the act is tried again."""
    with pytest.raises(errors.Garbled, match="did not say which files are in place"):
        replies.read_failed_paths(answer, sent=["a"], host="h")


def test_wrong_answers_are_tried_again_and_then_end_the_run_with_exit_4() -> None:
    """Twice it counts as a machine that does not answer; the third time as one that is unfit."""
    work = workload(Stranger(b'{"state": "flying"}'))
    for _ in range(2):
        with pytest.raises(HostUnreachable, match="described a job in a way that is none"):
            work.job_status(VM)
    with pytest.raises(HostUnfit, match="described a job in a way that is none"):
        work.job_status(VM)


def test_an_answer_in_between_ends_the_counting() -> None:
    """Three bad moments in a long night are not three in a row."""
    work = workload(Stranger(b"["))
    for _ in range(4):
        with pytest.raises(HostUnreachable):
            work.job_status(VM)
        answer_with(work, Stranger(json.dumps(JOB).encode()))
        assert work.job_status(VM).phase is JobPhase.RUNNING
        answer_with(work, Stranger(b"["))


def test_the_rooms_read_strangers_words_alike() -> None:
    """No room imports another, so each has the same file."""
    root = Path(__file__).resolve().parent.parent
    texts = {(root / room / "untrusted.py").read_text() for room in ("infra", "remote", "trainer")}

    assert len(texts) == 1


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "no JSON"),
        (b'{"a":1,"a":2}', "twice"),
        (b"\xff", "UTF-8"),
        (b"[" * 65 + b"]" * 65, "64 deep"),
        (b'"' + b"x" * 2000 + b'"', "bytes"),
    ],
)
def test_what_is_no_plain_json_is_refused_with_the_reason(printed: bytes, why: str) -> None:
    """Each in a few words, without the text."""
    with pytest.raises(NotPlain, match=why):
        parse(printed, bytes_max=1000)


def test_what_is_no_finite_number_is_none() -> None:
    """NaN, infinities, and digits beyond what any count has; brackets in texts are no depth."""
    printed = (
        b'{"a":NaN,"b":-Infinity,"c":1e999,"d":' + b"9" * 5000 + b',"e":"' + b"[" * 500 + b'"}'
    )
    found = parse(printed, bytes_max=10_000)

    assert found == {"a": None, "b": None, "c": None, "d": None, "e": "[" * 500}


def test_a_machine_that_answers_nonsense_stops_billing(tmp_path: Path) -> None:
    """The run ends with exit 4 and a sentence, and its compute is given back."""
    story = Story(path=tmp_path / "journal.jsonl")
    vars(story.work)["job_status"] = workload(Stranger(b'{"state": ["running"]}')).job_status
    ending = story.go()

    assert ending.outcome is Outcome.MACHINE_FAILED
    assert "described a job in a way that is none" in ending.reason
    assert not fold(read(story.path)).up
