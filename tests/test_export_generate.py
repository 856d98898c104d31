"""Generation asks as training asked, answers on stdout, and ends where the model ends."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from support.models import gpt2
from support.tiny import make_config, make_model, make_rows, make_tokenizer, write_config

from trainer.__main__ import main
from trainer.config import TrainerConfig
from trainer.data.examples import load_examples
from trainer.results.generate import chat_loop
from trainer.results.generator import Generator

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory around a tiny model that was not trained."""
    place = tmp_path_factory.mktemp("generate")
    model, rows = make_model(place / "model"), make_rows(place / "train.jsonl", 6)
    return write_config(place / "run", make_config(model, rows))


def generator(run_dir: Path, **tables: Any) -> Generator:
    """The tiny model, loaded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(run_dir.parent / "model"))
    rows = run_dir.parent / "train.jsonl"
    config = TrainerConfig.model_validate(make_config(run_dir.parent / "model", rows) | tables)
    return Generator(model=model.eval(), tokenizer=make_tokenizer(), config=config)


def test_a_row_is_encoded_as_training_encoded_it(run_dir: Path) -> None:
    """The prompt's tokens are those before the completion of the same row in training."""
    given = generator(run_dir)
    rows = run_dir.parent / "train.jsonl"
    item = load_examples(given.config.data, rows, given.tokenizer, max_length=128).items[0]
    text = item.prompt.removesuffix("\nmood: ")

    assert given.encode_row({"text": text}).ids == item.prompt_ids
    assert given.encode_text(item.prompt).ids == item.prompt_ids


def test_one_prompt_gets_one_answer(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base can be asked without an adapter; an endless answer is cut and said to be."""
    arguments = ["--run-dir", str(run_dir), "--base-only", "--tokens", "4"]

    assert main(["generate", *arguments, "--field", "text=the sky"]) == 0
    first = capsys.readouterr()
    assert main(["generate", *arguments, "--prompt", "the sky\nmood: "]) == 0
    assert capsys.readouterr().out == first.out
    assert first.err == "(stopped after 4 tokens without an end)\n"


def test_what_is_missing_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field the template names, and an adapter that is not there yet."""
    assert main(["generate", "--run-dir", str(run_dir), "--base-only", "--field", "txt=a"]) == 65
    assert "no field `text`" in capsys.readouterr().err
    assert main(["generate", "--run-dir", str(run_dir)]) == 78
    assert "holds no adapter; train first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("--field text", (78, "--field text: write NAME=TEXT")),
        ("--field text=a --field mood=b", (78, "--field mood: the prompt's fields are text")),
        ("--field text=a --tokens 0", (78, "--tokens: 0")),
        (
            "--chat",
            (78, "no conversations, and its base has no chat template\nhint: ask with --fie"),
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    answer: tuple[int, str],
) -> None:
    """Each slip of the command line ends with a sentence and a code."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    code = main(["generate", "--run-dir", str(run_dir), "--base-only", *given.split()])

    assert (code, answer[1] in capsys.readouterr().err) == (answer[0], True)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("--field text=sky --tokens 99", (0, "(stopped after 55 tokens without an end)")),
        ("--prompt 0123456789012345678901234567890123456789012345678901234567890123", (0, "(stop")),
        ("--prompt 01234567890123456789012345678901234567890123456789012345678901234", (65, "64;")),
    ],
)
def test_an_answer_ends_where_the_base_has_no_more_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, answer: tuple[int, str]
) -> None:
    """A base with 64 learnt places reads 64 tokens and writes one more, and refuses a 65th."""
    gpt2(tmp_path / "model")
    rows = make_rows(tmp_path / "train.jsonl", 6)
    run = write_config(tmp_path / "run", make_config(tmp_path / "model", rows))
    code = main(["generate", "--run-dir", str(run), "--base-only", *given.split()])

    assert (code, answer[1] in capsys.readouterr().err) == (answer[0], True)


def test_an_empty_prompt_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base whose tokenizer puts nothing in front has nothing to begin with."""
    assert main(["generate", "--run-dir", str(run_dir), "--base-only", "--prompt", ""]) == 65
    assert "the prompt is empty" in capsys.readouterr().err


def test_without_a_stdin_a_conversation_has_no_questions(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program started with its standard input closed has none, and ends as at its end."""
    monkeypatch.setattr("sys.stdin", None)
    table = {"prompt": "", "completion": "", "messages": "messages", "chat": "markers"}
    config = make_config(run_dir.parent / "model", tmp_path / "talk.jsonl", data=table)
    run = write_config(tmp_path / "run", config)

    assert main(["generate", "--run-dir", str(run), "--base-only", "--chat"]) == 0


def test_a_conversation_keeps_all_messages(run_dir: Path) -> None:
    """Each question is asked after all before it, with the answers the model gave."""
    data = {"train": "rows.jsonl", "messages": "messages"}
    given = generator(run_dir, data=data)
    given.tokenizer.chat_template = CHATML
    pieces: list[str] = []
    chat_loop(given, iter(io.StringIO("hi\n\nand why\n")), pieces.append, tokens_max=3)
    messages = [{"role": "user", "content": "hi"}]
    first = given.generate(given.encode_chat(messages), tokens_max=3).text
    messages += [
        {"role": "assistant", "content": first if first.strip() else "."},
        {"role": "user", "content": "and why"},
    ]
    second = given.generate(given.encode_chat(messages), tokens_max=3).text

    assert "".join(pieces) == f"{first}\n{second}\n"
    assert given.tokenizer.decode(given.encode_chat(messages).ids).endswith(
        "and why</s>\n<s>assistant\n"
    )
