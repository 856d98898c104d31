"""The audit tells what trains wrongly, with its rows, and is silent on clean ones."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.audits import audited
from support.pages import read
from support.tiny import make_config, make_tokenizer
from support.tokenizers_built import build
from tokenizers import normalizers
from transformers import T5Config

from trainer.atomic import RealDisk
from trainer.config import TrainerConfig
from trainer.data.examples import load_examples
from trainer.eviction import PreemptionFlag
from trainer.job.context import JobContext, JobOptions
from trainer.job.prepare import prepare_inputs
from trainer.pages.audit import as_page, as_text, audit
from trainer.pages.tokenizer_checks import check_answer_tokens
from trainer.rundir.layout import data_facts
from trainer.rundir.status import HeartbeatWriter

TEXT = {"data": {"prompt": "{text}\nmood: ", "completion": "{mood}"}}
GREEN = [f"Line {n} is run by shop number {n + 2}." for n in range(12)]


def warnings_of(folder: Path, rows: list[dict[str, Any]], **data: Any) -> list[str]:
    """Audit rows of free text, without labels to score."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = TrainerConfig.model_validate(make_config(folder / "model", path, data=data))
    return audit(config, folder, make_tokenizer(), seq2seq=False).warnings


def rows_of(answers: list[Any], **fields: Any) -> list[dict[str, Any]]:
    """Rows that ask something of their own, with these answers."""
    return [{"text": f"Why {n}?", "mood": one, **fields} for n, one in enumerate(answers)]


def replaced(at: int, new: Any) -> list[dict[str, Any]]:
    """Clean rows, of which one has another answer."""
    return rows_of([new if n == at else one for n, one in enumerate(GREEN)])


def test_clean_rows_are_passed_over_in_silence(tmp_path: Path) -> None:
    """Free answers, with line breaks, accents and code, give no warning."""
    answers = [*GREEN, "a\nb", "\u00e9t\u00e9 \u4f60\u597d", "print('x') # \u2192", "None of them."]

    assert warnings_of(tmp_path, rows_of(answers)) == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("one\r\ntwo", r"1 of 12 answers hold `\r`, Windows' line ends, which are learnt"),
        ("one\0two", "control characters such as NUL"),
        ("one\u200btwo", "characters without a width"),
        ("\ufeffone two", "characters without a width"),
        ("one \ufffd", "a character that was lost"),
        ("caf\u00c3\u00a9 one", "UTF-8 that was read as Windows-1252"),
        ("it\u00e2\u20ac\u2122s one", "UTF-8 that was read as Windows-1252"),
        (r"one\ntwo", r"`\n` as a backslash and a letter"),
        ("one &amp; two", "entities of HTML"),
        ("nan", "are the word 'nan'"),
        ("None", "are the word 'None'"),
        ("NULL", "are the word 'NULL'"),
        ("#NAME?", "are the word '#NAME?'"),
        ("[object Object]", "are the word '[object Object]'"),
    ],
)
def test_what_nobody_means_to_teach_is_reported_with_its_row(
    tmp_path: Path, answer: str, words: str
) -> None:
    """Line ends of Windows (pandas#36062), lost characters and words for nothing (pandas#25353)."""
    (warning,) = warnings_of(tmp_path, replaced(6, answer))

    assert warning.startswith("data.train: 1 of 12 answers ")
    assert words in warning
    assert "(row 7)" in warning


def test_a_word_for_nothing_that_is_a_label_is_no_mistake(tmp_path: Path) -> None:
    """`N/A` for no label at all, or `none` among few labels, is what is to be learnt."""
    rows = rows_of(["N/A", "a", "b"] * 4)
    scored = audited(tmp_path, rows, eval={"kind": "multilabel", "labels": ["a", "b"]})

    assert not any("the word" in line for line in scored.warnings)
    assert warnings_of(tmp_path, rows_of(["none", "a", "b"] * 4)) == []


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        ([0, 1.0, 0.0, 1], "'0' (3 rows), '0.0' (3 rows)"),
        (["yes", "no", "yes ", "no"], "'yes' (3 rows), 'yes ' (3 rows)"),
        ([True, "no", "True", "no"], "'true' (3 rows), 'True' (3 rows)"),
        (["Good", "good", "Good", "good"], "'Good' (6 rows), 'good' (6 rows)"),
    ],
)
def test_one_label_in_several_spellings_is_token_warnings(
    tmp_path: Path, answers: list[Any], shown: str
) -> None:
    """Each spelling is learnt as an answer of its own: numbers, spaces, case and truth."""
    warnings = warnings_of(tmp_path, rows_of(answers * 3))

    assert any(f"one label is written in several ways: {shown}" in line for line in warnings)


def test_sets_of_labels_in_several_orders_are_reported(tmp_path: Path) -> None:
    """The same set in another order, or with another separator, is another text to learn."""
    rows = rows_of(["a, b", "b, a", "a;b", "b", "a", "a, b"])
    warnings = audited(tmp_path, rows, eval={"kind": "multilabel", "labels": ["a", "b"]}).warnings

    ways = "'a, b' (2 rows), 'b, a' (1 rows), 'a;b' (1 rows)"
    assert any(f"1 sets of labels are written in several ways, such as {ways}" in line
               for line in warnings)  # fmt: skip


def test_fields_that_some_rows_lack_are_reported_with_their_number(tmp_path: Path) -> None:
    """Null and absent are empty text in prompt and answer, and the rows are named."""
    rows = [
        {"text": f"Why {n}?", "mood": one, **({"more": None} if n % 2 else {})}
        for n, one in enumerate(GREEN)
    ]
    rows[2]["more"] = "by day"
    warnings = warnings_of(tmp_path, rows, prompt="{text} {more}\n")

    rest = "in 11 of 12 rows, and is empty text there (11 rows: 1, 2, 4, 5, 6, ...)"
    assert warnings == [f"data.train: `more` is null or absent {rest}"]
    empty = [row | {"more": " "} for row in rows]
    assert warnings_of(tmp_path, empty, prompt="{text} {more}\n") == [
        "data.train: `more` is empty in every row"
    ]


def test_a_text_that_begins_as_a_list_does_is_a_text(tmp_path: Path) -> None:
    """Prompts in brackets are compared as they stand, and are no broken lists."""
    rows = [row | {"text": f"[INST] {row['text']} [/INST]"} for row in rows_of(GREEN)]

    assert warnings_of(tmp_path, rows) == []
    (warning,) = warnings_of(
        tmp_path, [row | {"text": f"{row['text']} {row['mood']}"} for row in rows]
    )
    assert "holds the answer in 12 of 12 rows" in warning


def test_an_answer_in_its_own_prompt_is_reported_with_the_field(tmp_path: Path) -> None:
    """Alpaca's `text` holds the whole example; a copied answer in three rows is told as well."""
    rows = [row | {"whole": f"Q: {row['text']}\nA: {row['mood']}\n"} for row in rows_of(GREEN)]
    (warning,) = warnings_of(tmp_path, rows, prompt="{text} {whole}\n")

    assert "`whole`, a field of the prompt, holds the answer in 12 of 12 rows" in warning
    few = [row | {"whole": row["mood"] if n < 3 else "-"} for n, row in enumerate(rows_of(GREEN))]
    (warning,) = warnings_of(tmp_path, few, prompt="{text} {whole}\n")
    assert "holds the answer in 3 of 12 rows (3 rows: 1, 2, 3)" in warning


def test_short_answers_leak_where_nearly_all_texts_end_with_them(tmp_path: Path) -> None:
    """A label at the end of its text is told; one that stands in a text by chance is not."""
    rows = [{"text": f"{n}. Is it? {one}", "mood": one} for n, one in enumerate(["no", "yes"] * 6)]
    chance = [row | {"text": f"{n}. I know no one, yes?"} for n, row in enumerate(rows)]
    part = [row | {"text": f"{n} x{row['mood']}"} for n, row in enumerate(rows)]

    (warning,) = warnings_of(tmp_path, rows)
    assert "`text`, a field of the prompt, ends with the answer in 12 of 12 rows" in warning
    assert warnings_of(tmp_path, chance) == []
    assert warnings_of(tmp_path, part) == []


def test_cells_that_a_spreadsheet_may_have_cut_are_token_warnings(tmp_path: Path) -> None:
    """Excel keeps 32,767 characters of a cell, and says nothing when there were more."""
    rows = rows_of(GREEN)
    rows[4]["notes"] = "x" * 32_767

    (warning,) = warnings_of(tmp_path, rows)
    assert "cells have 32767 characters, the most that Excel keeps" in warning
    assert "(row 5)" in warning


def test_how_a_file_was_read_is_reported_for_each_side(tmp_path: Path) -> None:
    """NaN that became null is a warning of the file that it stands in."""
    rows = rows_of(GREEN, more=1.5)
    rows[3]["more"] = float("nan")
    warnings = warnings_of(tmp_path, rows, eval="train.jsonl")

    note = "`more`: NaN or an infinity is read as null (row 4)"
    assert [line for line in warnings if "NaN" in line] == [
        f"data.train: {note}", f"data.eval: {note}",
    ]  # fmt: skip


def test_warnings_are_part_of_text_and_page(tmp_path: Path) -> None:
    """What the rows hold stands among the other warnings, once."""
    found = audited(tmp_path, rows_of(["neutral\r", "negative", "positive"]))
    found_lines = [line for line in found.warnings if r"`\r`" in line]

    assert len(found_lines) == 1
    assert f"warning: {found_lines[0]}\n" in as_text(found)
    assert found_lines[0] in read(as_page(found, "moods")).text


def t5_like() -> Any:
    """Return a tokenizer that, as T5's, has no braces and takes a line break for a space."""
    tokenizer = build("unigram", bos=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")
    return tokenizer


def token_warnings(folder: Path, answers: list[str], tokenizer: Any) -> list[str]:
    """What is told of answers that a tokenizer writes."""
    path = folder / "rows.jsonl"
    rows = [{"text": f"nice {n}", "mood": one} for n, one in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = TrainerConfig.model_validate(make_config(folder, path)).data
    items = load_examples(table, path, tokenizer, max_length=200, seq2seq=True).items
    return list(check_answer_tokens(items, tokenizer))


def test_answers_of_unknown_tokens_are_reported_with_the_characters(tmp_path: Path) -> None:
    """T5 has no token for braces (text-to-text-transfer-transformer#390, transformers#6917)."""
    answers = ["negative", '{"mood": 1}', "positive", "{}"]
    (line,) = token_warnings(tmp_path, answers, t5_like())

    assert line.startswith("2 of 4 answers are learnt with `<unk>`")
    assert '`{` `"` `}`' in line
    assert "(2 rows: 2, 4)" in line


def test_answers_of_the_same_tokens_are_reported(tmp_path: Path) -> None:
    """Two labels that a vocabulary cannot tell apart are named before scoring refuses them."""
    lines = token_warnings(tmp_path, ["{", "}", "positive"], t5_like())

    assert lines[1] == (
        "the base's tokenizer writes '{' (row 1) and '}' (row 2) with the same tokens"
    )


def test_texts_with_one_ending_are_not_the_same(tmp_path: Path) -> None:
    """Of texts that are learnt whole, all tokens are compared."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "Black text"}\n{"body": "White text"}\n', encoding="utf-8")
    table = make_config(tmp_path / "model", path) | {"data": {"train": str(path), "text": "body"}}
    config = TrainerConfig.model_validate(table)

    assert audit(config, tmp_path, make_tokenizer(), seq2seq=False).warnings == []


def test_line_breaks_that_a_tokenizer_drops_are_token_warnings(tmp_path: Path) -> None:
    """What comes back as one line was two."""
    (line,) = token_warnings(tmp_path, ["negative", "negative\npositive"], t5_like())

    assert "drops line breaks: 1 of 2 answers looked at lose them (row 2)" in line


def test_answers_that_decode_to_another_text_are_token_warnings(tmp_path: Path) -> None:
    """A tokenizer that lowers case teaches other words than the file has."""
    tokenizer = build("unigram", bos=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (line,) = token_warnings(tmp_path, ["negative", "Tweet"], tokenizer)

    assert "changes 1 of 2 answers looked at (row 2): row 2, 'Tweet', is learnt as 'tweet'" in line


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_answers_that_a_tokenizer_can_write_give_no_warning(tmp_path: Path, kind: str) -> None:
    """Labels and texts of known letters decode back, in byte-level and in piece vocabularies."""
    assert (
        token_warnings(tmp_path, ["negative", "so nice, thank you", " the page"], build(kind)) == []
    )


def test_a_training_says_so_too(tmp_path: Path) -> None:
    """Who trains without an audit reads it in the log of the job, before the first step."""
    model = tmp_path / "model"
    t5_like().save_pretrained(str(model))
    T5Config(vocab_size=400, d_model=16, d_ff=16, num_layers=1, num_heads=2).save_pretrained(model)
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"nice {n}", "mood": f'{{"n": {n % 2}}}'} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = TrainerConfig.model_validate(make_config(model, path))
    lines: list[str] = []
    job = JobContext(
        options=JobOptions(run_dir=tmp_path),
        config=config,
        inputs=data_facts(config, tmp_path),
        heartbeat=HeartbeatWriter(
            tmp_path / "status.json", disk=RealDisk(), now=lambda: datetime.now(UTC)
        ),
        flag=PreemptionFlag(time.monotonic),
        on_message=lines.append,
    )
    prepare_inputs(job)

    assert any(line.startswith("4 of 4 answers are learnt with `<unk>`") for line in lines)
