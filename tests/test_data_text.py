"""Plain texts are learnt from their first token to their end, and long rows as `too_long` says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny
from support.audits import audited
from support.runs import make_project
from support.tokenizers_built import KINDS, build

from commands.runs.config import check_data_and_model, load
from commands.ui.errors import UsageError
from trainer.__main__ import main
from trainer.config import TrainerConfig
from trainer.data.codec import NOT_TRAINED
from trainer.data.examples import load_examples
from trainer.data_table import DataTable
from trainer.errors import DataError
from trainer.pages.audit import as_page, as_text, audit
from trainer.rundir.fingerprint import flatten_config
from trainer.rundir.layout import training_facts

FRAMES = list(itertools.product(KINDS, (True, False), (True, False)))
GUANACO = "### Human: Where is my parcel? ### Assistant: It left on Monday."


def texts(**changes: Any) -> DataTable:
    """Return a table of plain texts."""
    return DataTable.model_validate({"train": "rows.jsonl", "text": "text", **changes})


def pairs(**changes: Any) -> DataTable:
    """Return a table of prompts and answers."""
    fields = {"train": "rows.jsonl", "prompt": "{text} = ", "completion": "{answer}"}
    return DataTable.model_validate({**fields, **changes})


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "bos", "frame"), FRAMES)
def test_every_token_of_a_text_is_learnt_with_one_bos_and_its_end(
    kind: str, *, bos: bool, frame: bool, tmp_path: Path
) -> None:
    """The ids are the tokenizer's own with the end token, as TRL's for its `text` rows."""
    tokenizer = build(kind, bos=bos, frame=frame)
    path = write(tmp_path / "rows.jsonl", {"text": GUANACO}, {"text": "you are nice"})
    found = load_examples(texts(), path, tokenizer, max_length=200)

    for item, text in zip(found.items, (GUANACO, "you are nice"), strict=True):
        ids = tokenizer(text)["input_ids"]
        ended = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        assert list(item.input_ids) == ended
        assert item.labels == item.input_ids
    assert found.report.supervised_tokens == found.report.tokens


def test_a_text_that_writes_its_own_marks_has_none_twice(tmp_path: Path) -> None:
    """A text rendered for a model (`<s>[INST] ... </s>`) keeps its marks, and the audit tells."""
    tokenizer = build("bpe")
    path = write(tmp_path / "rows.jsonl", {"text": "<s>[INST] you [/INST] nice</s>"})
    found = load_examples(texts(), path, tokenizer, max_length=64)
    (item,) = found.items

    assert item.input_ids.count(tokenizer.bos_token_id) == 1
    assert item.input_ids.count(tokenizer.eos_token_id) == 1
    assert found.report.warnings[0].startswith("the texts hold control tokens (<s>, </s>)")


@pytest.mark.parametrize("value", ["", " \n ", None, {"a": "b"}])
def test_what_is_no_text_is_refused_with_its_row(value: object, tmp_path: Path) -> None:
    """Nothing, null, space alone and an object are no text to learn."""
    path = write(tmp_path / "rows.jsonl", {"text": "you"}, {"text": value})

    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*text"):
        load_examples(texts(), path, build(), max_length=64)


def test_a_missing_text_names_the_columns(tmp_path: Path) -> None:
    """A slip in the name of the column is answered with those there are."""
    path = write(tmp_path / "rows.jsonl", {"txt": "you"})

    with pytest.raises(DataError, match=r"no field `text` \(the row has `txt`\)"):
        load_examples(texts(), path, build(), max_length=64)


def test_a_text_that_is_too_long_loses_its_end(tmp_path: Path) -> None:
    """`cut` keeps the first tokens and teaches no end where the text does not end."""
    tokenizer = tiny.make_tokenizer()
    path = write(tmp_path / "rows.jsonl", {"text": "x" * 40}, {"text": "x" * 19})
    long, fitting = load_examples(texts(), path, tokenizer, max_length=20).items

    assert len(long.input_ids) == len(fitting.input_ids) == 20
    assert tokenizer.eos_token_id not in long.labels
    assert fitting.labels[-1] == tokenizer.eos_token_id


def test_encoders_with_decoders_refuse_texts(tmp_path: Path) -> None:
    """They read a prompt and learn an answer; a text is neither."""
    path = write(tmp_path / "rows.jsonl", {"text": "you"})

    with pytest.raises(DataError, match=r"`data\.text`: an encoder-decoder reads a prompt"):
        load_examples(texts(), path, build(), max_length=64, seq2seq=True)


def test_a_laptop_refuses_what_the_machine_would(tmp_path: Path) -> None:
    """Empty texts and an encoder-decoder are told before anything is rented."""
    project = make_project(tmp_path / "project")
    (project.folder / "train.jsonl").write_text('{"text": ""}\n{"other": "a"}\n')
    config = project.folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "is_encoder_decoder": True}))
    tables = yaml.safe_load(project.config.read_text())
    tables["data"] = {"train": "train.jsonl", "text": "text"}
    tables.pop("eval", None)
    project.config.write_text(yaml.safe_dump(tables))

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(project.config))
    problems = "\n".join(caught.value.problems)
    assert "train.jsonl:1: the text is empty; leave the row out" in problems
    assert "train.jsonl:2: no field `text` (the row has `other`)" in problems
    assert "data.text: `model` is an encoder-decoder" in problems


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "a", "prompt": "{a}"}, "`text` takes the place of `prompt` and `completion`"),
        ({"text": "a", "messages": "b"}, "`messages` and `text` are two ways to read a row"),
        ({"text": ""}, "at least 1 character"),
    ],
)
def test_one_way_to_read_a_row_is_kept(data: dict[str, Any], message: str) -> None:
    """Two ways at once are refused with what to do."""
    with pytest.raises(ValueError, match=message):
        DataTable.model_validate({"train": "rows.jsonl", **data})


def test_a_score_needs_answers() -> None:
    """The table `eval` goes with no texts."""
    raw = tiny.make_config(Path("model"), Path("train.jsonl"))
    raw["data"] = {"train": "train.jsonl", "eval": "eval.jsonl", "text": "text"}
    raw["eval"] = {"kind": "label", "labels": ["a"]}

    with pytest.raises(ValueError, match=r"scores answers, and a `data\.text` has none"):
        TrainerConfig.model_validate(raw)


def test_texts_train_and_validate(tmp_path: Path) -> None:
    """A run over texts ends with an adapter and the losses of held-out texts."""
    run = tiny.make_run(
        tmp_path,
        rows=8,
        data={"text": "text", "prompt": "", "completion": "", "eval": "../train.jsonl"},
        train={"steps": 2, "validate_every": 1},
    )

    assert main(["train", "--run-dir", str(run)]) == 0
    assert all(line["validation_loss"] > 0 for line in tiny.losses(run))


def test_the_audit_shows_texts_without_answers(tmp_path: Path) -> None:
    """The whole text is marked, duplicates are those of texts, and no answers are listed."""
    path = write(
        tmp_path / "rows.jsonl", {"text": "the sky"}, {"text": "The sky."}, {"text": "the rain"}
    )
    raw = tiny.make_config(tmp_path / "model", path) | {
        "data": {"train": str(path), "text": "text"}
    }
    config = TrainerConfig.model_validate(raw)
    found = audit(config, tmp_path, tiny.make_tokenizer(), seq2seq=False)

    assert "【the sky</s>】" in as_text(found)
    assert (found.duplicates.exact, found.duplicates.near) == (0, 1)
    assert "answers" not in as_text(found)
    assert found.labels == []
    assert as_page(found, "texts")


LONG, SHORT = {"text": "x" * 90, "answer": "yes"}, {"text": "why", "answer": "no"}
MUCH = {"text": "why", "answer": "y" * 90}
TURNS = [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "yes"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def test_long_rows_are_cut_if_nothing_else_is_wanted(tmp_path: Path) -> None:
    """By default a prompt loses its middle, and an answer too long is an error, as ever."""
    tokenizer = tiny.make_tokenizer()
    path = write(tmp_path / "rows.jsonl", LONG, SHORT)
    plain, named = (
        load_examples(table, path, tokenizer, max_length=32)
        for table in (pairs(), pairs(too_long="cut"))
    )

    assert plain == named
    assert (plain.report.truncated_rows, plain.report.dropped) == ((1,), 0)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the completion needs 91 tokens"):
        load_examples(pairs(), write(tmp_path / "rows.jsonl", MUCH), tokenizer, max_length=32)


def test_long_rows_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    """`drop` keeps what fits untouched, also where an answer alone is too long, and says so."""
    path = write(tmp_path / "rows.jsonl", SHORT, LONG, MUCH, SHORT)
    found = load_examples(pairs(too_long="drop"), path, tiny.make_tokenizer(), max_length=32)

    assert [item.row for item in found.items] == [1, 4]
    assert (found.report.rows, found.report.dropped, found.report.dropped_rows) == (2, 2, (2, 3))
    assert found.report.truncated == 0


def test_long_rows_are_refused_on_request(tmp_path: Path) -> None:
    """`refuse` names every such row with its length, and the way out."""
    path = write(tmp_path / "rows.jsonl", SHORT, LONG, MUCH)

    with pytest.raises(DataError) as caught:
        load_examples(pairs(too_long="refuse"), path, tiny.make_tokenizer(), max_length=32)
    first, second = caught.value.problems
    assert first.startswith(f"{path}:2: the row has 97 tokens, and `max_length` is 32 ")
    assert second.startswith(f"{path}:3: the completion needs 91 tokens")


@pytest.mark.parametrize("choice", ["drop", "refuse"])
@pytest.mark.parametrize("field", ["text", "messages"])
def test_texts_and_conversations_follow_the_same_choice(
    field: str, choice: str, tmp_path: Path
) -> None:
    """A long text or conversation is left out, or refused with its row."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    short = [{**TURNS[0], "content": "why"}, TURNS[1]]
    path = write(
        tmp_path / "rows.jsonl",
        {"text": "x" * 90, "messages": TURNS},
        {"text": "why", "messages": short},
    )
    table = DataTable.model_validate({"train": "rows.jsonl", field: field, "too_long": choice})
    if choice == "refuse":
        with pytest.raises(DataError, match=r"rows\.jsonl:1: the row has .*`too_long: refuse`"):
            load_examples(table, path, tokenizer, max_length=48)
        return
    found = load_examples(table, path, tokenizer, max_length=48)
    assert [item.row for item in found.items] == [2]
    assert found.report.dropped_rows == (1,)


def test_a_file_of_long_rows_alone_is_refused(tmp_path: Path) -> None:
    """With nothing left there is nothing to learn, and the message says what to raise."""
    path = write(tmp_path / "rows.jsonl", LONG, MUCH)

    with pytest.raises(DataError, match=r"all of its 2 rows have more than 32 .*max_length"):
        load_examples(pairs(too_long="drop"), path, tiny.make_tokenizer(), max_length=32)


def test_audit_and_trainer_count_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows are listed before money is spent, and counted when training begins."""
    rows = [{"text": "x" * 300 if n in {2, 4} else f"t {n}", "mood": "neutral"} for n in range(6)]
    found = audited(tmp_path, rows, data={"eval": "eval.jsonl", "too_long": "drop"})
    run = tiny.make_run(
        tmp_path / "job", rows=8, data={"too_long": "drop"}, train={"steps": 1, "max_length": 48}
    )

    assert "dropped as too long, to learn from: 2, row 3, 5" in as_text(found)
    assert found.train["dropped"] == 2
    assert main(["train", "--run-dir", str(run)]) == 0
    assert "2 rows have more than 48 tokens and were left out" in capsys.readouterr().err


def test_later_keys_at_their_default_leave_a_run_as_it_was() -> None:
    """Facts of a run recorded before these keys are those of today; another value changes them."""
    raw = tiny.make_config(Path("model"), Path("train.jsonl"))
    plain = TrainerConfig.model_validate(raw)
    inputs = {"data.train": "a", "data.eval": None}
    spelt, dropped = (
        TrainerConfig.model_validate({**raw, "data": {**raw["data"], "too_long": choice}})
        for choice in ("cut", "drop")
    )

    assert not {"data.text", "data.too_long", "data.day"} & set(flatten_config(plain))
    assert training_facts(plain, inputs) == training_facts(spelt, inputs)
    assert training_facts(dropped, inputs)["data.too_long"] == "drop"


def test_only_prompts_are_masked_beside_texts(tmp_path: Path) -> None:
    """Text rows have no masked label, rows of two templates do."""
    tokenizer = tiny.make_tokenizer()
    path = write(tmp_path / "rows.jsonl", SHORT)
    (whole,), (pair,) = (
        load_examples(table, path, tokenizer, max_length=32).items for table in (texts(), pairs())
    )

    assert NOT_TRAINED not in whole.labels
    assert pair.labels.count(NOT_TRAINED) == pair.prompt_length
