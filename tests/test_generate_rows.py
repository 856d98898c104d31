"""A file of rows is answered after one load, in order, each row as if it were the only one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import make_adapter
from support.tiny import make_config, make_model, make_rows, write_config

from trainer.__main__ import main
from trainer.results import generate
from trainer.results.generator import Generator, to_be_answered

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

QUESTIONS = ("the sky", "nobody knows why", "rain")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory around a tiny model that was not trained; prompts of 32 tokens at most."""
    place = tmp_path_factory.mktemp("rows")
    model, rows = make_model(place / "model"), make_rows(place / "train.jsonl", 6)
    config = make_config(model, rows)
    config["train"] = {**config["train"], "max_length": 32}
    return write_config(place / "run", config)


@pytest.fixture
def ask(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the trainer's generator on the base; return its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        flags = ["--run-dir", str(run_dir), "--base-only", "--tokens", "5"]
        code = main(["generate", *flags, *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def rows_file(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_row_gets_the_answer_that_it_gets_alone(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """From JSON lines and from a table with other columns, one object a line, in order."""
    alone = [
        json.loads(ask("--field", f"text={text}", "--json")[1])["answer"] for text in QUESTIONS
    ]
    file = rows_file(tmp_path / "new.jsonl", *({"text": text, "id": 7} for text in QUESTIONS))
    table = tmp_path / "new.csv"
    table.write_text("id,text\n" + "".join(f"7,{text}\n" for text in QUESTIONS))

    code, out, _ = ask("--rows", str(file))
    answers = [json.loads(line) for line in out.splitlines()]

    assert code == 0
    assert [answer["row"] for answer in answers] == [1, 2, 3]
    assert [answer["answer"] for answer in answers] == alone
    assert {(answer["stopped"], answer["left_out"]) for answer in answers} == {(False, 0)}
    assert ask("--rows", str(table))[1] == out


def test_a_row_that_cannot_be_answered_is_named_before_anything_is_loaded(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All such rows are named at once, and no model is loaded for them."""
    monkeypatch.setattr(generate, "load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    file = rows_file(tmp_path / "new.jsonl", {"text": "a"}, {"txet": "b"}, {"text": {"c": 1}})
    code, out, err = ask("--rows", str(file))

    assert (code, out) == (65, "")
    assert f"{file}:2: no field `text`" in err
    assert f"{file}:3: field `text` is a dict" in err
    assert ask("--rows", str(tmp_path / "none.jsonl"))[0] == 65


def test_the_tokens_that_a_prompt_is_cut_by_are_named(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """The tokens left out are those by which the prompt exceeds what training leaves for it."""
    long = "x" * 50
    prompt = f"{long}\nmood: "  # a token a character; the end token of an answer takes one of 32
    left_out = len(prompt) - 31
    file = rows_file(tmp_path / "new.jsonl", {"text": "a"}, {"text": long})

    _, out, err = ask("--field", f"text={long}", "--json")
    assert json.loads(out)["left_out"] == left_out
    assert f"the prompt was cut: {left_out} of its {len(prompt)} tokens were left out" in err
    assert err == ask("--prompt", prompt)[2] == ask("--field", f"text={long}")[2]
    _, out, err = ask("--rows", str(file))
    assert [json.loads(line)["left_out"] for line in out.splitlines()] == [0, left_out]
    assert f"{file}:2: the prompt was cut: {left_out} of its" in err


def test_answers_of_a_file_go_on_where_they_were_cut_off(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a Ctrl-C at any row the same command answers the rest; the file comes whole or not."""
    file = rows_file(tmp_path / "new.jsonl", *({"text": text} for text in QUESTIONS))
    expected = ask("--rows", str(file))[1]
    out = tmp_path / "answers.jsonl"
    answered: list[int] = []
    whole = Generator.generate

    def interrupted(self: Generator, prompt: Any, **more: Any) -> Any:
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(1)
        return whole(self, prompt, **more)

    monkeypatch.setattr(Generator, "generate", interrupted)
    assert ask("--rows", str(file), "--out", str(out))[0] == 130
    assert not out.exists()
    answered.clear()
    code, printed, err = ask("--rows", str(file), "--out", str(out))

    assert (code, printed, len(answered)) == (0, "", 1)
    assert "2 of 3 rows were answered before" in err
    assert out.read_text() == expected
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers.jsonl"]
    answered.clear()
    rows_file(file, {"text": "another"})
    assert ask("--rows", str(file), "--out", str(out))[0] == 0
    assert len(out.read_text().splitlines()) == len(answered) == 1


def test_rows_of_conversations_are_answered_without_their_own_answer() -> None:
    """A row may end with a question, or with the answer that the model is to give itself."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    more = [*turns, {"role": "user", "content": "why?"}]
    inner = {"talk": {"messages": more}, "system": "be brief"}

    ended = to_be_answered({"messages": turns, "first": "hello"}, "messages")
    unanswered = to_be_answered(inner, "talk.messages")

    assert [message["content"] for message in ended.messages] == ["hi", "."]
    assert [m["content"] for m in unanswered.messages] == ["be brief", "hi", "hello", "why?", "."]
    assert turns[-1]["content"] == "hello"


def test_a_run_without_conversations_warns_under_chat(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, then it answers; the base alone, or a run that learnt chats, says none.

    What a conversation loses to fit is said before its answer.
    """
    config = json.loads((run_dir / "config.json").read_text())
    prompts = {**config["data"], "chat": "markers"}
    chats = {"train": prompts["train"], "messages": "messages", "chat": "markers"}
    make_adapter(run_dir.parent / "model", run_dir.parent / "adapter")
    lines = {}
    for name, data in (("prompts", prompts), ("chats", chats)):
        run = write_config(run_dir.parent / name, {**config, "data": data})
        for more in ([], ["--base-only"]):
            monkeypatch.setattr("sys.stdin", io.StringIO("hi\n" + "y" * 90 + "\n"))
            flags = ["--adapter", str(run_dir.parent / "adapter"), "--tokens", "3", *more]
            assert main(["generate", "--run-dir", str(run), "--chat", *flags]) == 0
            printed = capsys.readouterr()
            assert printed.out.endswith("\n")
            lines[name, bool(more)] = printed.err.splitlines()

    assert lines["prompts", False].pop(0) == generate.NOT_TRAINED_ON_CHATS
    cut = re.compile(r"\(the conversation was cut: \d+ of its \d+ tokens were left out")
    assert all(len(notes) == 1 and cut.match(notes[0]) for notes in lines.values())


def test_a_text_run_goes_on_with_the_text_of_a_row(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every token of a text is learnt, the text of a row is the prompt."""
    config = json.loads((run_dir / "config.json").read_text())
    data = {"train": config["data"]["train"], "text": "text"}
    run = write_config(tmp_path / "run", {**config, "data": data})
    flags = ["--run-dir", str(run), "--base-only", "--tokens", "4", "--json"]
    row = rows_file(tmp_path / "row.jsonl", {"text": "the sky"})

    assert main(["generate", *flags, "--row-file", str(row)]) == 0
    by_row = capsys.readouterr().out
    assert main(["generate", *flags, "--prompt", "the sky"]) == 0
    assert capsys.readouterr().out == by_row
