"""What somebody with a file of rows types first: `qft`, `qft init --data`, and their mistakes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny import ROOT

import cli
from commands.init import write
from commands.runs.config import check, load
from commands.ui.console import LiveConsole, PlainConsole, make_console
from commands.ui.errors import UsageError
from infra.durable import write_bytes
from trainer.data.rows import read_rows
from trainer.errors import DataError

HEAD, LABELS = ("text", "label"), ("negative", "neutral", "positive")


def qft(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `qft` in a folder, with a `$QFT_HOME` of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=folder,
        env={**os.environ, "QFT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def table(separator: str, *, newline: str = "\n") -> str:
    """Sixty labelled rows under a heading."""
    rows = [HEAD, *((f"order {n} was late", LABELS[n % 3]) for n in range(60))]
    return newline.join(separator.join(row) for row in rows) + newline


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", b"\xef\xbb\xbf" + table(";", newline="\r\n").encode()),
        ("plain.csv", table(",").encode()),
        ("tabs.csv", table("\t").encode()),
        ("tabs.tsv", table("\t").encode()),
    ],
)
def test_a_spreadsheets_file_becomes_a_config_that_fits(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """Separator, mark and line ends of a spreadsheet do not matter; labels are found."""
    (tmp_path / name).write_bytes(content)

    written = write(str(tmp_path), str(tmp_path / name))

    loaded = load(tmp_path / "run.yaml")
    assert loaded.config.data.prompt == "Text: {text}\nLabel:"
    assert loaded.config.data.completion == " {label}"
    assert loaded.config.label_table is not None
    assert tuple(loaded.config.label_table.labels) == LABELS
    assert sum(written.files.values()) == 60
    assert all(count == len(read_rows(path)) for path, count in written.files.items())


def test_conversations_are_recognised_beside_columns(tmp_path: Path) -> None:
    """A field of turns becomes `data.messages`, without labels to score."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    lines = [
        json.dumps({"id": n, "talk": [*turns, {"role": "user", "content": str(n)}]})
        for n in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))

    write(str(tmp_path), str(tmp_path / "chats.jsonl"))

    loaded = load(tmp_path / "run.yaml")
    assert (loaded.config.data.messages, loaded.config.label_table) == ("talk", None)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"id": "0", "comment_text": "a", "toxic": "0", "severe_toxic": "0"}, "jigsaw"),
        ({"prompt": "a", "reference_code": "b", "metadata": {}, "code_context": ""}, "ds1000"),
        ({"id": "0", "conversations": [{"from": "human", "value": "a"}]}, "conversations"),
    ],
)
def test_a_published_form_is_sent_to_its_converter(
    tmp_path: Path, row: dict[str, object], kind: str
) -> None:
    """Rows that need more than a template are known by their columns."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    with pytest.raises(UsageError) as caught:
        write(str(tmp_path), str(tmp_path / "rows.jsonl"))

    assert f"`qft data {kind} FILE`" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "labels"), [((0.0, 1.0), ("0.0", "1.0")), ((False, True), ("false", "true"))]
)
def test_labels_are_named_as_they_will_be_read(
    tmp_path: Path, values: tuple[object, ...], labels: tuple[str, ...]
) -> None:
    """Numbers and truth values become the very words that a template writes."""
    lines = [json.dumps({"text": f"t {n}", "label": values[n % 2]}) + "\n" for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))

    guess = write(str(tmp_path), str(tmp_path / "rows.jsonl")).guess

    assert guess is not None
    assert guess.labels == labels


def moods(path: Path, *answers: object) -> Path:
    """Write sixty rows that take turns among the answers."""
    rows = [{"text": f"t {n}", "label": answers[n % len(answers)]} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["2024", "yes", "null", "1e5", "0x10", "rows"])
def test_a_run_is_named_after_its_file_whatever_that_means_in_yaml(
    tmp_path: Path, name: str
) -> None:
    """Years and words that YAML takes for a number, a truth or nothing are names, too."""
    write(str(tmp_path), str(moods(tmp_path / f"{name}.jsonl", "good", "bad")))

    assert load(tmp_path / "run.yaml").config.name == name


def test_labels_with_signs_that_yaml_keeps_from_texts_are_written_as_escapes(
    tmp_path: Path,
) -> None:
    """A control character, a mark of byte order and a face come back as they were."""
    labels = ["a\x7fb", "c\ufeffd", '\U0001f600 "so" \\']
    write(str(tmp_path), str(moods(tmp_path / "rows.jsonl", *labels)))

    scored = load(tmp_path / "run.yaml").config.label_table
    assert scored is not None
    assert sorted(scored.labels) == sorted(labels)


@pytest.mark.parametrize("labels", [("Good", "good", "bad"), ("a\u2028b", "c")])
def test_labels_that_could_not_be_scored_are_refused_at_once(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    """Words that differ by case only, or hold a line break, are named, and nothing is written."""
    rows = moods(tmp_path / "rows.jsonl", *labels)
    with pytest.raises(UsageError, match="the labels in `label` cannot be scored") as caught:
        write(str(tmp_path), str(rows))

    assert repr(labels[0]) in caught.value.problems[-1]
    assert list(tmp_path.iterdir()) == [rows]


@pytest.mark.parametrize(
    ("answers", "labels", "none"),
    [
        (("a, b", "a", "none"), ("a", "b"), "none"),
        ((["a", "b"], ["b", "c"], ["c"]), ("a", "b", "c"), "N/A"),
        (("a; b", "a", "b", "b; none"), ("a", "b", "none"), "N/A"),
        (("Salem, OR", "Portland, OR"), ("Portland, OR", "Salem, OR"), ""),
    ],
)
def test_sets_of_labels_are_recognised_beside_single_ones(
    tmp_path: Path, answers: tuple[Any, ...], labels: tuple[str, ...], none: str
) -> None:
    """Answers made of few words, one or more at a time, are scored as sets; the rest as a whole."""
    write(str(tmp_path), str(moods(tmp_path / "rows.jsonl", *answers)))

    scored = load(tmp_path / "run.yaml").config.label_table
    assert scored is not None
    assert tuple(scored.labels) == labels
    assert (scored.kind, scored.none) == (("multilabel", none) if none else ("label", "N/A"))


def test_an_empty_set_of_labels_is_to_be_written_as_a_word(tmp_path: Path) -> None:
    """A row without any label teaches nothing as it is: the message has the word to write."""
    rows = moods(tmp_path / "rows.jsonl", ["a", "b"], ["a"], ["b"], [])

    with pytest.raises(UsageError) as caught:
        write(str(tmp_path), str(rows))

    assert "write `N/A` there" in caught.value.hint


def test_init_overwrites_nothing_and_leaves_nothing_half(tmp_path: Path) -> None:
    """If any of its three files is there, none is written."""
    (tmp_path / "rows.csv").write_text(table(","))
    (tmp_path / "eval.jsonl").write_text("mine")

    with pytest.raises(UsageError, match="is there already"):
        write(str(tmp_path), str(tmp_path / "rows.csv"))

    assert not (tmp_path / "run.yaml").exists()
    assert (tmp_path / "eval.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(",").replace("negative", ""), "20 rows have nothing in `label`"),
        ("one,two\n" * 30, "no telling which of the columns"),
        ("text,label\na,b\n", "too few different questions"),
        (table(",").replace("text", "what is it (max: 9)?"), "no template can name the column"),
        (table(",").replace("text", "a {b}"), "no template can name the column 'a {b}'"),
    ],
)
def test_rows_that_cannot_be_guessed_from_are_refused_with_what_is_missing(
    tmp_path: Path, content: str, message: str
) -> None:
    """An empty answer, unknown columns or too few rows are told instead of trained on."""
    (tmp_path / "rows.csv").write_text(content)

    with pytest.raises(UsageError, match=message):
        write(str(tmp_path), str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1},\n', "the line ends with a comma"),
        ("a.jsonl", b'[\n{"a": 1}\n]\n', "goes into a `.json` file"),
        ("a.jsonl", b'{\n"a": 1\n}\n', "must stand on one line"),
        ("a.jsonl", b"{'a': 1}\n", "double quotes"),
        ("a.json", b'{\n"a": 1}\n{"a": 2}\n', "Extra data, line 3 column 1"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"PK\x03\x04...", "save as"),
        ("a.csv", b"\x1f\x8b...", "`.gz`"),
        ("a.xlsx", b"PK\x03\x04...", "CSV UTF-8"),
        ("a", b"a,b\n", "a name without an ending"),
    ],
)
def test_the_usual_mistakes_in_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """A file that is something else than its name says is refused with what it is."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_an_error_of_every_row_is_printed_once(tmp_path: Path) -> None:
    """A misspelt field is one line with a count, not a screenful."""
    (tmp_path / "rows.csv").write_text(table(","))
    write(str(tmp_path), str(tmp_path / "rows.csv"))
    text = (tmp_path / "run.yaml").read_text().replace("{label}", "{lable}")
    (tmp_path / "run.yaml").write_text(text)

    done = qft(tmp_path, "audit", "--json")

    message = json.loads(done.stdout)
    assert (done.returncode, len(message["problems"])) == (2, 2)
    assert "train.jsonl:1: no field `lable`" in message["problems"][0]
    assert "more rows" in message["problems"][0]


def test_without_arguments_the_help_comes_without_a_reproach(tmp_path: Path) -> None:
    """`qft` alone prints its help on stderr, exits 2, and calls nothing an error."""
    done = qft(tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "qft init --data rows.csv" in done.stderr
    assert "error" not in done.stderr


def test_every_command_has_examples_that_it_understands() -> None:
    """The foot of each command's help shows it, with options that it has."""
    unknown, others = [], []
    for name in cli.COMMANDS:
        command = cli.load_command(name)
        lines = importlib.import_module(f"commands.{name}").EXAMPLES
        flags = {flag for option in command.params for flag in option.opts}
        others += [line for line in lines if not line.startswith(f"qft {name}")]
        if command.context_settings.get("ignore_unknown_options"):  # the words are the host's
            continue
        words = [word for line in lines for word in line.partition(" <")[0].split()[2:]]
        unknown += [(name, word) for word in words if word.startswith("-") and word not in flags]
        assert all(line in command.epilog for line in lines)

    assert (unknown, others) == ([], [])


def test_the_table_of_commands_says_what_each_command_says_of_itself() -> None:
    """`qft --help` imports no command: its table has each file, with the first line of its help."""
    files = {path.stem for path in (ROOT / "commands").glob("[a-z]*.py")}

    assert set(cli.COMMANDS) == files
    helps = {name: cli.load_command(name).help or "" for name in files}
    assert {name: one.partition("\n\n")[0] for name, one in helps.items()} == cli.COMMANDS


def test_no_command_loads_a_heavy_library_before_its_work() -> None:
    """All the files of commands together import neither clouds nor SSH nor torch: help is quick."""
    load_all = "import sys, cli\nfor name in cli.COMMANDS: cli.load_command(name)\n"
    done = subprocess.run(
        [sys.executable, "-c", load_all + "print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"asyncssh", "azure", "fabric", "paramiko", "psutil", "rich", "torch"} == set()
    assert "typer" in loaded


def test_a_mistyped_command_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    """The names in the table are enough to suggest one; no command is imported for it."""
    done = qft(tmp_path, "plam")

    assert done.returncode == 2
    assert "Did you mean 'plan'?" in done.stderr


def test_a_terminal_that_cannot_move_its_lines_gets_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With TERM=dumb a run is told line by line; in a real terminal the last lines move."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    kinds = []
    for term in ("dumb", "xterm"):
        monkeypatch.setenv("TERM", term)
        kinds.append(type(make_console(simulated=True, plain=False, clock=time.monotonic)))

    assert kinds == [PlainConsole, LiveConsole]


def test_plain_lines_begin_with_the_time_of_day(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log one sees when a milestone was reached; what stands apart is left as it is."""
    moment = time.struct_time((2026, 1, 2, 9, 5, 7, 4, 2, 0))
    console = make_console(simulated=True, plain=True, clock=lambda: 0.0, wall=lambda: moment)
    console.log("preparing the machine")
    console.progress("adapter", 2 << 20, 2 << 20)
    console.log("\nthe machine goes on")
    printed = capsys.readouterr()

    assert printed.err.split("\n") == [
        "09:05:07 preparing the machine",
        "09:05:07 adapter: 2.1 MB transferred",
        "",
        "the machine goes on",
        "",
    ]
    assert printed.out == ""


def test_a_mistyped_option_points_to_the_help_of_its_command(tmp_path: Path) -> None:
    """The hint names the command whose help explains the option, or the list of commands."""
    option, command = qft(tmp_path, "run", "--jsn"), qft(tmp_path, "rum")

    assert (option.returncode, command.returncode) == (2, 2)
    assert "`qft run --help` explains its options" in option.stderr
    assert "`qft --help` lists every command" in command.stderr


def test_what_an_ssh_machine_lacks_is_named_field_by_field() -> None:
    """A table inside a table is known by its keys: `vm.ssh.user`, not only `vm.ssh`."""
    content = {
        "name": "a",
        "vm": {"provider": "ssh", "ssh": {"host": "gpu.example", "prot": 22}},
        "model": {"id": "x/y"},
        "data": {"train": "a", "prompt": "a", "completion": "b"},
    }

    with pytest.raises(UsageError) as caught:
        check(content, Path("run.yaml"))

    assert "vm.ssh.user: Field required" in caught.value.problems
    assert "vm.ssh.prot: unknown key; did you mean `port`?" in caught.value.problems


def test_a_disk_too_full_for_a_start_gets_all_of_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for run.yaml no rows are left either, and the same command works later."""
    (tmp_path / "rows.csv").write_text(table(","))
    whole = write_bytes

    def full(path: Path, data: bytes, *, mode: int) -> None:
        if path.suffix == ".yaml":
            raise OSError(28, "No space left on device")
        whole(path, data, mode=mode)

    monkeypatch.setattr("commands.init.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(str(tmp_path), str(tmp_path / "rows.csv"))
    left = [path.name for path in tmp_path.iterdir()]
    monkeypatch.undo()
    write(str(tmp_path), str(tmp_path / "rows.csv"))

    assert left == ["rows.csv"]
    assert (tmp_path / "run.yaml").exists()


def test_a_start_that_was_killed_half_way_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """The same rows are no obstacle; rows of somebody else are never overwritten."""
    (tmp_path / "rows.csv").write_text(table(","))
    write(str(tmp_path), str(tmp_path / "rows.csv"))
    (tmp_path / "run.yaml").unlink()
    (tmp_path / "eval.jsonl").unlink()

    write(str(tmp_path), str(tmp_path / "rows.csv"))
    (tmp_path / "run.yaml").unlink()
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        write(str(tmp_path), str(tmp_path / "rows.csv"))

    assert (tmp_path / "train.jsonl").read_text() == "mine"
    assert not (tmp_path / "run.yaml").exists()


def test_a_config_is_identified_by_its_place_not_by_the_way_there(tmp_path: Path) -> None:
    """A run started as `../run.yaml` does not hang on the folder it was typed in."""
    write(str(tmp_path))
    (tmp_path / "sub").mkdir()

    assert load(tmp_path / "sub" / ".." / "run.yaml").path == tmp_path.resolve() / "run.yaml"
