"""A chat template that writes the day sees that on which the run began, whenever it is rendered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny
from support.rig import saves_in_step
from support.runs import make_project

from commands.runs.config import load
from commands.runs.home import RunFolder, make_private
from commands.runs.local_trainer import local_run_dir
from commands.runs.payload import build_payload
from commands.runs.receipt import make_receipt
from commands.runs.request import RunRequest
from commands.runs.run_day import day_of_run
from commands.runs.session import open_session
from infra.run.journal import Journal, Kind
from trainer import model as models
from trainer.config import TrainerConfig
from trainer.data import codec
from trainer.data.codec import NOT_TRAINED, Codec, tokens_sha256
from trainer.data.datasets import load_training_rows
from trainer.data.examples import load_examples
from trainer.errors import ConfigError, Preempted
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.job.replay import Replay, replay
from trainer.pages.audit import run as audit_command
from trainer.pages.run_files import build_report
from trainer.results.base_name import BaseName
from trainer.results.generator import load as load_generator
from trainer.results.publish import model_card
from trainer.rundir.fingerprint import compare
from trainer.saving.checkpointer import Checkpointer
from trainer.saving.run_day import load_run_config, recorded_day

TEMPLATE = (
    "{{ bos_token }}System: today is {{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""What Llama 3.2's template does with the day, in few words."""
MONDAY = datetime(2026, 11, 30, 23, 50, tzinfo=UTC)
CONVERSATION = {"messages": "talk", "prompt": "", "completion": ""}


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def lay_out(folder: Path, **tables: Any) -> Path:
    """Lay out a run of conversations whose template writes the day."""
    run = tiny.make_run(folder, rows=12, data=CONVERSATION, **{"train": {"steps": 8}, **tables})
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder / "model"))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for row in rows:
        turns = (("user", row["text"]), ("assistant", row["mood"]))
        row["talk"] = [{"role": role, "content": content} for role, content in turns]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def train(run: Path, now: datetime) -> list[str]:
    """Train in this process with a clock that shows `now`; return what was messages."""
    messages: list[str] = []
    with saves_in_step():
        run_job(JobOptions(run_dir=run), messages.append, now=lambda: now)
    return messages


def again(run: Path) -> Replay:
    """Replay steps of a run."""
    return replay(run, steps=None, clock=time.monotonic, on_message=lambda _text: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that began and ended on Monday."""
    run = lay_out(tmp_path_factory.mktemp("monday"))
    train(run, MONDAY)
    return run


@pytest.fixture
def no_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever asks for the day of today fail."""

    class Clock:
        """Has no present."""

        @staticmethod
        def now(**_: object) -> datetime:
            """Fail: the day of a run was fixed when it began."""
            raise AssertionError("the day of today was asked for")

    monkeypatch.setattr(codec, "datetime", Clock)


@pytest.mark.usefixtures("no_today")
def test_a_run_resumed_on_the_next_day_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGTERM on Monday and resumed on Tuesday, it has Monday's log and adapter."""
    run = lay_out(tmp_path)
    after_step = Checkpointer.after_step

    def stop_after_four(self: Checkpointer, record: dict[str, Any]) -> None:
        after_step(self, record)
        if record["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", stop_after_four)
        with pytest.raises(Preempted):
            train(run, MONDAY)
    messages = train(run, MONDAY + timedelta(days=1))

    assert "resuming after step 4 of 8" in messages
    assert tiny.losses(run) == tiny.losses(undisturbed)
    assert tiny.adapter_bytes(run) == tiny.adapter_bytes(undisturbed)


@pytest.mark.usefixtures("no_today")
def test_verify_agrees_on_a_third_day(undisturbed: Path, tmp_path: Path) -> None:
    """A replay needs no clock, also in a copy that lacks the record, which checkpoints name too."""
    copy = shutil.copytree(undisturbed, tmp_path / "run")
    (copy / ".day.json").unlink()

    for run in (undisturbed, copy):
        found = again(run)
        assert (found.equal, found.caveats, found.checkpoint_compared) == (True, (), 8)


def test_another_day_gives_other_tokens_and_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    """Resume and replay say which day was and is, for a template that writes it."""
    run = shutil.copytree(undisturbed, tmp_path / "run")
    config = read_json(run / "config.json")
    config["data"]["day"] = "2026-12-01"
    (run / "config.json").write_text(json.dumps(config))
    shutil.rmtree(run / "adapter")

    for attempt in (lambda: train(run, MONDAY), lambda: again(run)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert "tokens of data.train: were " in str(caught.value)
        assert "(data.day was 2026-11-30, is 2026-12-01)" in str(caught.value)


def test_a_day_that_no_template_writes_changes_nothing(tmp_path: Path) -> None:
    """By itself the day neither refuses a resume nor changes a bit."""
    run = tiny.make_run(tmp_path, rows=8, train={"steps": 2})
    train(run, MONDAY)
    first = tiny.adapter_bytes(run)
    config = read_json(run / "config.json")
    config["data"]["day"] = "2020-01-01"
    (run / "config.json").write_text(json.dumps(config))
    train(run, MONDAY)

    assert first == tiny.adapter_bytes(run)
    assert read_json(run / "adapter" / "qft.json")["day"] == "2020-01-01"


def test_the_day_is_that_of_the_beginning_in_utc(tmp_path: Path) -> None:
    """Whoever starts the run, and wherever, its first day in UTC is written once and kept."""
    run = lay_out(tmp_path, train={"steps": 1})
    kiritimati = MONDAY.astimezone(timezone(timedelta(hours=14)))
    train(run, kiritimati)
    (run / "adapter" / "qft.json").unlink()
    train(run, MONDAY + timedelta(days=7))

    assert kiritimati.date() == date(2026, 12, 1)
    assert read_json(run / ".day.json") == {"day": "2026-11-30"}
    assert read_json(run / "adapter" / "qft.json")["day"] == "2026-11-30"


def test_a_record_that_holds_no_day_is_refused(tmp_path: Path) -> None:
    """Whatever was put in its place is named, with what should stand there."""
    (tmp_path / ".day.json").write_text('{"day": "tomorrow"}')

    with pytest.raises(ConfigError, match=r'\.day\.json: .* \{"day": "2026-11-30"\}'):
        recorded_day(tmp_path)


@pytest.mark.usefixtures("no_today")
def test_every_later_look_sees_the_day_of_the_run(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Audit, generation and the model card show Monday."""
    config = load_run_config(undisturbed)
    audit_command(type("Arguments", (), {"run_dir": undisturbed, "html": None, "json": False})())
    generator = load_generator(undisturbed, adapter=None, base_only=True)
    prompt = generator.encode_chat([{"role": "user", "content": "why?"}])
    card = model_card(
        config, build_report(undisturbed), base=BaseName(name="b", on_hub=False), merged=False
    )

    assert "today is 30 Nov 2026" in capsys.readouterr().out
    assert "today is 30 Nov 2026" in generator.tokenizer.decode(prompt.ids)
    assert "the chat template saw the day 2026-11-30" in card


def test_without_a_day_a_template_sees_today() -> None:
    """What was not begun is shown as it would begin now."""
    before = datetime.now(tz=UTC).date()
    day = Codec.from_tokenizer(tiny.make_tokenizer(), max_length=8, seq2seq=False).day

    assert day in {before, before + timedelta(days=1)}


def test_the_laptop_sends_the_day_on_which_its_record_begins(tmp_path: Path) -> None:
    """The config that travels names it, days later, for a run of an earlier version too."""
    project = make_project(tmp_path / "project")
    loaded, folder = load(project.config), RunFolder(root=tmp_path / "home")
    folder.root.mkdir()

    assert day_of_run(loaded, folder) is None
    Journal(folder.journal, clock=MONDAY.timestamp).append(
        Kind.RUN_STARTED, run_id="tiny-1", name="tiny"
    )
    Journal(folder.journal, clock=(MONDAY + timedelta(days=3)).timestamp).append(
        Kind.RUN_RESUMED, changed=False
    )
    day = day_of_run(loaded, folder)
    sent = read_json(build_payload(loaded, tmp_path / "sent", day=day).config)
    TrainerConfig.model_validate(sent)

    assert sent["data"]["day"] == "2026-11-30"


def test_a_session_opened_days_later_sends_the_same_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a driver pushes, and what is replayed here, is the day of the record's first event."""
    project = make_project(tmp_path / "project")
    monkeypatch.setenv("QFT_HOME", str(project.home))
    loaded = load(project.config)
    console: Any = SimpleNamespace(log=lambda _text: None, progress=None, report=None)
    request = RunRequest(loaded=loaded, home=project.home, console=console)
    folder = request.folder
    make_private(folder.root)
    Journal(folder.journal, clock=MONDAY.timestamp).append(
        Kind.RUN_STARTED, run_id="tiny-1", name="tiny"
    )
    with open_session(request):
        pushed = read_json(folder.payload / "config.json")
    with local_run_dir(loaded, folder) as run_dir:
        replayed = read_json(run_dir / "config.json")

    assert pushed["data"]["day"] == replayed["data"]["day"] == "2026-11-30"


def test_the_receipt_names_the_day_that_the_trainer_noted(tmp_path: Path) -> None:
    """It stands in `receipt.json`; nothing that is no day does."""
    folder = RunFolder(root=tmp_path)
    Journal(folder.journal, clock=MONDAY.timestamp).append(
        Kind.RUN_STARTED, run_id="tiny-1", name="tiny"
    )
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    for noted, read in (("2026-11-30", "2026-11-30"), ("\x1b[2J", None), (None, None)):
        (tmp_path / "out" / "adapter" / "qft.json").write_text(json.dumps({"day": noted}))
        receipt = make_receipt(folder, tmp_path / "out", simulated=False)
        assert receipt.to_json()["day"] == read


def test_a_run_yaml_may_name_the_day_with_and_without_quotes(tmp_path: Path) -> None:
    """What YAML reads as a date is one here; what is none is told with the form."""
    project = make_project(tmp_path / "project")
    text = project.config.read_text()
    days = []
    for written in ("2026-11-30", "'2026-11-30'"):
        project.config.write_text(text.replace("data:\n", f"data:\n  day: {written}\n"))
        days.append(load(project.config).config.data.day)
    project.config.write_text(text.replace("data:\n", "data:\n  day: Monday\n"))

    assert days == [date(2026, 11, 30)] * 2
    with pytest.raises(Exception, match="fault") as caught:
        load(project.config)
    assert caught.value.problems == [  # type: ignore[attr-defined]
        "data.day: `Monday` is no day: write it as 2026-11-30"
    ]


def test_the_tokens_of_a_run_are_recorded(undisturbed: Path) -> None:
    """Each checkpoint has one digest of all ids and labels; one other label gives another."""
    config = load_run_config(undisturbed)
    tokenizer = models.load_tokenizer(models.find_source(config.model, undisturbed))
    rows = load_training_rows(
        config.data, lambda name: load_examples(config.data, Path(name), tokenizer, max_length=128)
    )
    fingerprint = read_json(undisturbed / "checkpoints" / "step-00000008" / "fingerprint.json")
    first, *others = rows.items
    masked = replace(first, labels=(*first.labels[:-1], NOT_TRAINED))

    assert fingerprint["tokens"] == {"data.train": tokens_sha256(rows.items)}
    assert fingerprint["day"] == "2026-11-30"
    assert tokens_sha256([masked, *others]) != tokens_sha256(rows.items)


def test_other_tokens_are_refused_and_a_run_that_recorded_none_goes_on() -> None:
    """The line names the library that may be the cause; what is known to differ is told instead."""
    old = {"tokens": {"data.train": "a"}, "versions": {"tokenizers": "0.22"}, "data": {"x": 1}}
    new = {"tokens": {"data.train": "b"}, "versions": {"tokenizers": "0.23"}, "data": {"x": 1}}
    earlier = {key: value for key, value in old.items() if key != "tokens"}

    (line,) = compare(old, new, allowed=()).refused
    assert line.startswith('tokens of data.train: were "a", are "b": ')
    assert "(tokenizers was 0.22, is 0.23)" in line
    assert compare(earlier, new, allowed=()).refused == ()
    assert compare(old, {**new, "data": {"x": 2}}, allowed=()).refused == (
        "x: was 1, is 2 (this may never change)",
    )
