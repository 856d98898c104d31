"""Mistakes end with the documented code and a sentence, never with a traceback or half a result."""

from __future__ import annotations

import errno
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny

from trainer.__main__ import COMMANDS, Command, main
from trainer.config import TrainerConfig
from trainer.config_errors import keys_at, table_of
from trainer.errors import Busy, ConfigError, DataError, Preempted
from trainer.exit_codes import ExitCode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model."""
    return tiny.make_model(tmp_path_factory.mktemp("base") / "model")


def ended(
    directory: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    /,
    *,
    rows: bytes | None = None,
    **tables: Mapping[str, Any],
) -> tuple[int, str, dict[str, Any]]:
    """Train on these rows and settings; return exit code, what was said, and the status."""
    data = tiny.make_rows(directory / "train.jsonl", 6)
    if rows is not None:
        data.write_bytes(rows)
    run = tiny.write_config(directory / "run", tiny.make_config(model, data, **tables))
    code = main(["train", "--run-dir", str(run)])
    messages = capsys.readouterr().err

    assert "Traceback" not in messages
    assert not (run / "adapter").exists()
    return code, messages, json.loads((run / "status.json").read_text())


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"train": {"batchsize": 3}}, ["train.batchsize: unknown key; did you mean `batch_size`?"]),
        (
            {"train": {"lr": -1}, "method": {"r": 0}, "checkpoint": {"keep": 1}},
            ["train.lr: ", "method.r: ", "checkpoint.keep: "],
        ),
        ({"train": {"epochs": 2}}, ["`steps` and `epochs` both say how long"]),
        ({"method": {"kind": "lora", "quant": "nf4"}}, ["contradict each other"]),
        ({"method": {"kind": "vera"}}, ["method.kind: Input should be 'lora', 'qlora', 'dora'"]),
        ({"checkpoint": {"every": "often"}}, ["checkpoint.every: "]),
        ({"eval": {"kind": "label", "labels": ["a"]}}, ["name a file in `data.eval`"]),
        ({"model": {"id": "../nowhere"}}, ["there is no directory"]),
        ({"method": {"targets": ["qq"]}}, ["no linear layer called qq; it has down_proj"]),
        ({"method": {"optimizer": "paged_adamw8bit"}}, ["needs a GPU; use adamw8bit"]),
        ({"train": {"precision": "fp16"}}, ["fp16 needs a GPU"]),
        ({"train": {"lr": math.inf}, "method": {"alpha": math.nan}}, ["train.lr: ", "method.al"]),
    ],
)
def test_bad_settings_end_with_78(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    tables: dict[str, Any],
    words: list[str],
) -> None:
    """Every wrong setting is named, all at once, and the status says that the run failed."""
    code, messages, status = ended(tmp_path, model, capsys, **tables)

    assert code == 78
    assert [word for word in words if word not in messages] == []
    assert (status["phase"], status["error"][:11]) == ("failed", "ConfigError")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (b"", "train.jsonl"),
        (b"\xff\xfe\n", "train.jsonl"),
        (b'{"text": "x"}\n', "mood"),
        (b'{"text": "x", "mood": "' + b"y" * 400 + b'"}\n', "train.jsonl:1"),
        (b"not json\n", "train.jsonl:1"),
    ],
)
def test_bad_rows_end_with_65(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], rows: bytes, words: str
) -> None:
    """Rows that cannot be learnt from are named by file and line."""
    code, messages, status = ended(tmp_path, model, capsys, rows=rows)

    assert code == 65
    assert words in messages
    assert status["phase"] == "failed"


def test_missing_rows_end_with_65(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data file that is not there is bad data, and named."""
    code, messages, _ = ended(tmp_path, model, capsys, data={"train": "nowhere.jsonl"})

    assert code == 65
    assert "nowhere.jsonl" in messages


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\x00"])
def test_a_config_that_is_none_ends_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    """A missing or broken config.json is said, not raised."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    assert main(["train", "--run-dir", str(tmp_path)]) == 78
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_run_directory_ends_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made where nothing is."""
    assert main(["train", "--run-dir", str(tmp_path / "no")]) == 78
    assert "there is no directory" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("command", ["train", "verify", "eval", "export"])
@pytest.mark.parametrize(
    "odd", ["nothing", "a file", "an empty directory", "a directory as config"]
)
def test_an_odd_run_directory_ends_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, odd: str
) -> None:
    """Whatever lies at the place of the run, each command says what is missing."""
    run = tmp_path / "run"
    if odd == "a file":
        run.write_text("x")
    elif odd == "a directory as config":
        (run / "config.json").mkdir(parents=True)
    elif odd == "an empty directory":
        run.mkdir()

    assert main([command, "--run-dir", str(run)]) == 78
    assert "Traceback" not in capsys.readouterr().err


def test_a_change_that_can_never_be_allowed_is_reported_at_once(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip in `--allow-change` does not wait for the first eviction."""
    data = tiny.make_rows(tmp_path / "train.jsonl", 6)
    run = tiny.write_config(tmp_path / "run", tiny.make_config(model, data))

    assert main(["train", "--run-dir", str(run), "--allow-change", "stepz"]) == 78
    assert "--allow-change stepz: this can never change" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["nan", "-1", "inf", "much"])
def test_an_odd_price_is_a_bad_command_line(price: str) -> None:
    """A price that no checkpoint could hold is refused before anything starts."""
    with pytest.raises(SystemExit) as ended:
        main(["train", "--run-dir", ".", "--price-usd-per-h", price])

    assert ended.value.code == 2


def test_a_full_disk_at_the_end_is_reported_and_ends_with_74(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the adapter is no bug: file, reason and remedy are said, without a traceback."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "adapter_model.safetensors")

    monkeypatch.setattr("trainer.adapters.adapter_method.AdapterMethod.save", full)
    data = tiny.make_rows(tmp_path / "train.jsonl", 6)
    run = tiny.write_config(
        tmp_path / "run", tiny.make_config(model, data, train={"steps": 1, "epochs": None})
    )

    assert main(["train", "--run-dir", str(run)]) == 74
    messages = capsys.readouterr().err
    assert "adapter_model.safetensors: No space left on device; free some space" in messages
    assert "Traceback" not in messages
    monkeypatch.undo()
    assert main(["train", "--run-dir", str(run)]) == 0


def test_probe_prints_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """`probe` prints one JSON document with versions and device."""
    assert main(["probe"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert facts["device"] in {"cpu", "cuda"}
    assert set(facts["versions"]) >= {"torch", "peft", "bitsandbytes"}


def test_help_and_checks_need_no_torch() -> None:
    """The config, the schedule, the status and a checkpoint's manifest load without torch."""
    code = (
        "import sys, trainer.config, trainer.schedule, trainer.rundir.status, trainer.eviction, "
        "trainer.saving.manifest, trainer.job.job, trainer.__main__ as door; "
        "door.make_parser([]).format_help(); "
        "print(sorted({'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )

    assert found.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its module is found, and describes its arguments."""
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])

    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m trainer {name} [-h]")


@pytest.mark.parametrize(
    ("error", "code", "heading", "problem"),
    [
        (Preempted(), 75, "", "preempted: the state is saved, the same command goes on"),
        (ConfigError(["a: b", "c: d"]), 78, "the config cannot be used:\n  ", "a: b\n"),
        (DataError(["rows:1: e"]), 65, "the data cannot be used:\n  ", "rows:1: e\n"),
        (Busy("another one"), 73, "busy:\n  ", "another one\n"),
        (OSError(errno.EIO, "bad", "x"), 74, "the disk or the network failed:\n  ", "x: bad\n"),
        (ImportError("no x"), 78, "nothing can be trained here:\n  ", f"{sys.executable} lacks"),
        (KeyboardInterrupt(), 130, "", "interrupted"),
        (ZeroDivisionError("by 0"), 70, "", "Traceback"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_has_its_exit_code_and_its_words(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, heading: str, problem: str
) -> None:
    """A job's log has a heading above the problems; a tool says the problems alone."""

    def run(_args: object) -> int:
        raise error

    module = SimpleNamespace(add_arguments=lambda _parser: None, run=run)
    monkeypatch.setitem(sys.modules, "trainer.failing", module)
    commands = {
        "job": Command("failing", "fails", headings=True), "tool": Command("failing", "fails"),
    }  # fmt: skip
    monkeypatch.setattr("trainer.__main__.COMMANDS", commands)

    for name, words in (("job", heading + problem), ("tool", problem)):
        log = io.StringIO()
        monkeypatch.setattr(sys, "stderr", log)
        assert main([name]) == code
        assert log.getvalue().startswith(words)


def test_the_manual_lists_every_exit_code() -> None:
    """The table in docs/checkpoint.md has each code of the trainer once, in order."""
    text = (tiny.ROOT / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]

    assert listed == sorted(ExitCode)


TABLES = {
    name: table
    for name, field in TrainerConfig.model_fields.items()
    if (table := table_of(field.annotation)) is not None
}


def test_every_field_is_described_and_listed() -> None:
    """Each field of each table has a description, and the hints know all of them."""
    for name, table in TABLES.items():
        written = [field.alias or key for key, field in table.model_fields.items()]
        assert keys_at(TrainerConfig, [name]) == written
        assert [k for k, f in table.model_fields.items() if not f.description] == []


def test_every_field_is_used() -> None:
    """Each field is read somewhere in the trainer, besides where it is defined."""
    tables = {"config.py", "data_table.py", "method_table.py"}
    rooms = [path for path in (tiny.ROOT / "trainer").rglob("*.py") if path.name not in tables]
    source = "\n".join(path.read_text() for path in rooms)
    own = "\n".join((tiny.ROOT / "trainer" / name).read_text() for name in tables)
    derived = {"quant", "every", "bases"}  # read by a property of their own table
    unread = [
        f"{table.__name__}.{name}"
        for table in TABLES.values()
        for name in table.model_fields
        if f".{name}" not in (own if name in derived else source)
    ]

    assert unread == []
