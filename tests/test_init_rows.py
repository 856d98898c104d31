"""`qft init --data` uses every column and row of a file, or says which it does not and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import make_config, make_tokenizer

from commands.init import Written, write
from commands.runs.config import RunConfig, load
from commands.ui.errors import UsageError
from trainer.config import TrainerConfig
from trainer.data.rows import read_rows
from trainer.pages.audit import Audit, audit

QUESTIONS = [f"Which bus goes to stop {n}?" for n in range(48)]
ANSWERS = [f"Take number {n}, it leaves every {n + 3} minutes." for n in range(48)]


def started(folder: Path, rows: list[dict[str, Any]] | str, name: str = "rows.jsonl") -> Written:
    """Write rows and a run.yaml for them."""
    lines = "".join(json.dumps(row) + "\n" for row in rows if isinstance(row, dict))
    (folder / name).write_text(rows if isinstance(rows, str) else lines, encoding="utf-8")
    return write(str(folder), str(folder / name))


def config_of(folder: Path) -> RunConfig:
    """Return the run.yaml that was written, as it is read."""
    return load(folder / "run.yaml").config


def written_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of both sides."""
    return [
        dict(row.fields)
        for side in ("train", "eval")
        for row in read_rows(folder / f"{side}.jsonl")
    ]


def audited(folder: Path) -> Audit:
    """Audit what was written, with a tokenizer of single bytes."""
    data = config_of(folder)
    tables = {
        name: table
        for name, table in data.trainer_tables.items()
        if name in {"data", "train", "eval"} and table is not None
    }
    config = TrainerConfig.model_validate(
        make_config(folder / "model", folder / "train.jsonl") | tables
    )
    return audit(config, folder, make_tokenizer(), seq2seq=False)


@pytest.mark.parametrize("empty", [{"input": None}, {"input": float("nan")}, {}])
def test_a_column_that_some_rows_lack_stays_in_the_prompt(
    tmp_path: Path, empty: dict[str, Any]
) -> None:
    """Null, NaN and absent are empty text, counted (alpaca-lora#565, unsloth#10813)."""
    rows = [
        {"instruction": asks, **(empty if n % 2 else {"input": "by day"}), "output": answer}
        for n, (asks, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    made = started(tmp_path, rows)
    found = audited(tmp_path)

    prompt = "Instruction: {instruction}\nInput: {input}\nOutput:"
    assert config_of(tmp_path).data.prompt == prompt
    note = "`input` is null or absent in 24 of 48 rows: empty text there"
    assert note in made.notes
    side = found.train["rows"]
    lines = [line for line in found.warnings if line.startswith("data.train: `input` is null")]
    assert len(lines) == 1
    assert f"of {side} rows, and is empty text there" in lines[0]


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path, nothing: object) -> None:
    """A label that is null is told with its rows, and the rest is used."""
    rows = [
        {"text": asks, "label": nothing if n % 8 == 0 else ("early", "late")[n % 2]}
        for n, asks in enumerate(QUESTIONS)
    ]
    made = started(tmp_path, rows)

    assert "left out: rows with nothing in `label` (6 rows: 1, 9, 17, 25, 33, ...)" in made.notes
    assert sum(made.files.values()) == 42
    assert made.guess is not None
    assert made.guess.labels == ("early", "late")
    assert audited(tmp_path).warnings == []


def test_a_few_empty_answers_of_a_table_are_left_out(tmp_path: Path) -> None:
    """An empty cell is what pandas writes for NaN."""
    lines = [
        f"{q},{('', 'early', 'late')[min(n % 12, 1 + n % 2)]}" for n, q in enumerate(QUESTIONS)
    ]
    made = started(tmp_path, "text,label\n" + "\n".join(lines), "rows.csv")

    assert "left out: rows with nothing in `label` (4 rows: 1, 13, 25, 37)" in made.notes


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0, 1.0, 0.0, 1), ("0", "1")),
        (("yes ", "no", " yes", "no  "), ("no", "yes")),
        (("very  good", "bad", "very good", "bad"), ("bad", "very good")),
        ((1, "2", "1.0", 2.0), ("1", "2")),
        (("cafe\u0301", "bar", "caf\u00e9", "bar"), ("bar", "caf\u00e9")),
    ],
)
def test_one_label_gets_one_spelling(
    tmp_path: Path, values: tuple[Any, ...], labels: tuple[str, ...]
) -> None:
    """Numbers and spaces are mended, told, and the rows hold what the labels are."""
    rows = [{"text": q, "label": values[n % 4]} for n, q in enumerate(QUESTIONS)]
    made = started(tmp_path, rows)

    assert made.guess is not None
    assert made.guess.labels == labels
    assert any(note.startswith("one label in several spellings: ") for note in made.notes)
    assert {str(row["label"]) for row in written_rows(tmp_path)} == set(labels)
    assert audited(tmp_path).warnings == []


@pytest.mark.parametrize("values", [(True, "True", "no"), ("Late", "late", "early")])
def test_labels_that_differ_in_case_are_refused(tmp_path: Path, values: tuple[Any, ...]) -> None:
    """Which of two cases is meant is for people to say."""
    rows = [{"text": q, "label": values[n % 3]} for n, q in enumerate(QUESTIONS)]

    with pytest.raises(UsageError, match="the labels in `label` cannot be scored"):
        started(tmp_path, rows)

    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize(
    "whole",
    [
        "Below is a task.\n\n### Instruction:\n{q}\n\n### Response:\n{a}",  # tatsu-lab/alpaca
        "<s>[INST] {q} [/INST] {a} </s>",  # mlabonne/guanaco-llama2-1k
        "Q: {q}\nA: {a}<|endoftext|>",
        "{a}",
    ],
)
def test_a_column_that_holds_the_answer_is_no_part_of_the_prompt(
    tmp_path: Path, whole: str
) -> None:
    """The whole example in a column of its own is left out, with the reason."""
    rows = [
        {"question": q, "output": a, "text": whole.format(q=q, a=a)}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    made = started(tmp_path, rows)

    assert config_of(tmp_path).data.prompt == "Question: {question}\nOutput:"
    assert "not used: `text` (it holds the answer)" in made.notes


def test_an_answer_that_is_an_extract_of_its_context_is_no_leak(tmp_path: Path) -> None:
    """SQuAD's answers stand in their contexts: the context stays in the prompt."""
    rows = [
        {"context": f"In the year {1900 + n} the line was opened. Bus {n} followed.",
         "question": q, "answer": f"In the year {1900 + n} the line was opened."}
        for n, q in enumerate(QUESTIONS)
    ]  # fmt: skip
    started(tmp_path, rows)

    assert "{context}" in config_of(tmp_path).data.prompt


def test_words_that_a_text_ends_with_by_chance_are_no_leak(tmp_path: Path) -> None:
    """Half of the texts end with the word that is their label."""
    rows = [
        {"text": f"Bus {n}: early or late", "label": ("early", "late")[n % 2]} for n in range(48)
    ]
    started(tmp_path, rows)

    assert config_of(tmp_path).data.prompt == "Text: {text}\nLabel:"
    assert audited(tmp_path).warnings == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ('{{"stop": {n}}}', "JSON"),
        ("first\nstop {n}", "lines"),
        ("<a>{n}</a>", "XML"),
        ('[{{"stop": {n}}}]', "a list"),
    ],
)
def test_answers_of_objects_or_lines_are_texts(tmp_path: Path, answer: str, kind: str) -> None:
    """Few different answers are no labels if they are objects, lists or lines."""
    rows = [{"text": q, "answer": answer.format(n=n % 4)} for n, q in enumerate(QUESTIONS)]
    made = started(tmp_path, rows)

    assert made.guess is not None
    assert made.guess.labels == (), kind


TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": 'Yes, "now".'}]


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_conversations_in_cells_of_a_table_are_read(tmp_path: Path, written: Any) -> None:
    """A list of turns that a CSV holds as text becomes one, whoever printed it."""
    conversations = [[{"role": "user", "content": q}, TURNS[1]] for q in QUESTIONS]
    cells = [
        '{},"{}"'.format(n, written(one).replace('"', '""')) for n, one in enumerate(conversations)
    ]
    made = started(tmp_path, "id,messages\n" + "\n".join(cells), "rows.csv")

    assert config_of(tmp_path).data.messages == "messages"
    assert "not used: `id`" in made.notes
    assert sorted(row["messages"][0]["content"] for row in written_rows(tmp_path)) == sorted(
        QUESTIONS
    )
    assert audited(tmp_path).train["rows"] == made.files[tmp_path / "train.jsonl"]


def test_conversations_without_an_answer_are_left_out_and_noted(tmp_path: Path) -> None:
    """Null, no answer at all, and a last question that nobody answered each have a note."""
    conversations: list[Any] = [[{"role": "user", "content": q}, TURNS[1]] for q in QUESTIONS]
    conversations[2], conversations[4] = None, [TURNS[0]]
    conversations[6] = [*conversations[6], TURNS[0]]
    made = started(tmp_path, [{"messages": one} for one in conversations])

    assert made.notes == (
        "left out: rows without an answer in `messages` (2 rows: 3, 5)",
        "last questions that nobody answered are cut off (row 7)",
    )
    assert audited(tmp_path).train["rows"] == made.files[tmp_path / "train.jsonl"]


def test_columns_beside_a_conversation_are_used_or_ignored_by_name(tmp_path: Path) -> None:
    """A system text is used, a description known, what is not understood is named in run.yaml."""
    beside = {"system": "Be brief.", "colour": "red"}
    rows = [
        {"id": n, **beside, "messages": [{"role": "user", "content": q}, TURNS[1]]}
        for n, q in enumerate(QUESTIONS)
    ]
    made = started(tmp_path, rows)

    assert config_of(tmp_path).data.ignore == ("colour",)
    assert made.notes == ("not used: `id`, `colour`",)
    assert audited(tmp_path).train["rows"] == made.files[tmp_path / "train.jsonl"]


@pytest.mark.parametrize("name", ["text", "Content"])
def test_a_column_of_texts_alone_is_learnt_whole(tmp_path: Path, name: str) -> None:
    """Where there is nothing but a text, every token of it is learnt; an empty one is left out."""
    texts = [f"{q} {a}" for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    rows = [{"id": None, name: None if n == 3 else text} for n, text in enumerate(texts)]
    made = started(tmp_path, rows)

    assert config_of(tmp_path).data.text == name
    assert made.notes[0] == f"left out: rows with nothing in `{name}` (row 4)"
    assert sum(made.files.values()) == 47
    assert audited(tmp_path).warnings == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "?", "chosen": "a", "rejected": "b"},  # TRL's preference type
        {"prompt": "?", "completion": "a", "label": True},  # and its unpaired one, for KTO
    ],
)
def test_preferences_are_named_for_what_they_are(tmp_path: Path, row: dict[str, Any]) -> None:
    """A better and a worse answer, or a judged one, are no labels to learn."""
    rows = [{**row, "prompt": q} for q in QUESTIONS]
    with pytest.raises(UsageError, match="what is to be learnt from preferences") as caught:
        started(tmp_path, rows)

    assert caught.value.problems[0].startswith("row 1: the row ")


@pytest.mark.parametrize("name", ["images", "rejected", "weight"])
def test_a_column_that_changes_a_conversation_is_refused(tmp_path: Path, name: str) -> None:
    """Pictures, preferences and weights are not passed over."""
    dialogues = [[{"role": "user", "content": q}, TURNS[1]] for q in QUESTIONS]

    with pytest.raises(UsageError) as caught:
        started(tmp_path, [{"messages": one, name: ["x"]} for one in dialogues])

    assert name in caught.value.problems[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # A table without names (langchain#6460, superset#9874).
        ("\n".join(f"{q}\t{n % 2}" for n, q in enumerate(QUESTIONS)), "the first line seems to"),
        ("\n".join(f"{q},{('good', 'bad')[n % 2]}" for n, q in enumerate(QUESTIONS)), "'good'"),
        # An index and nothing else beside the answer (milvus#33197).
        ("Unnamed: 0,label\n" + "0,a\n1,b\n" * 24, "no telling which of the columns"),
        ("text,Label,label\na,b,c\n", "'Label' and 'label' differ in case or outer spaces only"),
        ("text,label\n" + "\n".join(f"{q}," for q in QUESTIONS), "it is empty in every row"),
        ("id,messages\n" + '1,"[{""role"": ""user"""\n' * 3, "row 1 holds no list of turns"),
        ("text;answer\n" + "\n".join(f"{a};{a}" for a in ANSWERS), "holds the answer itself"),
    ],
)
def test_what_cannot_be_guessed_is_refused_with_the_columns_reasons(
    tmp_path: Path, content: str, message: str
) -> None:
    """A missing header, an empty column, a broken list: each is named, and nothing is written."""
    name = "rows.tsv" if "\t" in content else "rows.csv"
    with pytest.raises(UsageError) as caught:
        started(tmp_path, content, name)

    assert message in "\n".join([caught.value.message, *caught.value.problems])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("odd", [{"a": 1}, [1, 2], [{"b": 1}]])
def test_a_cell_that_no_template_writes_is_named_with_its_row(tmp_path: Path, odd: object) -> None:
    """An answer that is an object in one row is told, and not passed over."""
    rows = [{"text": q, "output": odd if n == 30 else a}
            for n, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        started(tmp_path, rows)

    assert caught.value.problems[0].startswith("`output`: row 31 holds a")


def test_a_table_of_an_index_is_used_without_it(tmp_path: Path) -> None:
    """Columns in which pandas numbers rows are never the question."""
    rows = [
        {"Unnamed: 0": n, "__index_level_0__": n, "body": q, "label": ("a", "b")[n % 2]}
        for n, q in enumerate(QUESTIONS)
    ]
    made = started(tmp_path, rows)

    assert config_of(tmp_path).data.prompt == "Body: {body}\nLabel:"
    assert "not used: `Unnamed: 0`, `__index_level_0__`" in made.notes


def test_numbers_that_nan_turned_into_floats_are_whole_again(tmp_path: Path) -> None:
    """Pandas writes 1.0 for 1 where a label is missing; and what numbers mean is asked for."""
    labels = ("", "1.0", "0.0", "1.0", "0.0", "0.0")
    lines = [f"{q},{labels[n % 6]}" for n, q in enumerate(QUESTIONS)]
    made = started(tmp_path, "text,label\n" + "\n".join(lines), "rows.csv")
    (tmp_path / "clean").mkdir()
    clean = started(
        tmp_path / "clean", [{"text": q, "label": n % 2 + 0.0} for n, q in enumerate(QUESTIONS)]
    )

    assert made.guess is not None
    assert clean.guess is not None
    assert made.guess.labels == ("0", "1")
    assert clean.guess.labels == ("0.0", "1.0")
    note = "the labels are numbers (0, 1): if they stand for words, write these"
    assert note in made.notes


def test_a_name_with_an_invisible_mark_is_recognised(tmp_path: Path) -> None:
    """A second byte order mark and a space without a width are no part of a column's name."""
    lines = [f"{q},{('early', 'late')[n % 2]}" for n, q in enumerate(QUESTIONS)]
    started(tmp_path, "\ufeff\ufefftext\u200b,label\n" + "\n".join(lines), "rows.csv")

    assert config_of(tmp_path).data.prompt == "Text\u200b: {text\u200b}\nLabel:"
    assert audited(tmp_path).train["rows"] > 0


def test_long_answers_raise_the_length_so_that_the_audit_accepts_them(tmp_path: Path) -> None:
    """`max_length` grows with the longest answer, and that is told."""
    rows = [{"user": q, "answer": f"{n} " * 900} for n, q in enumerate(QUESTIONS)]
    made = started(tmp_path, rows)

    assert config_of(tmp_path).train.max_length == 4096
    assert "`max_length` is 4096: the longest answer has 2700 bytes" in made.notes
    assert audited(tmp_path).train["rows"] > 0


def test_conversations_get_the_way_of_writing_that_takes_them(tmp_path: Path) -> None:
    """Plain turns stand under headings; others need a base with a chat template, which is named."""
    user = {"role": "user", "content": "Where is my parcel?"}
    plain = {"role": "assistant", "content": "On its way."}
    thought = plain | {"reasoning_content": "Shipped on Monday."}
    for name, answer, base, chat in (
        ("plain", plain, "HuggingFaceTB/SmolLM2-135M", "markers"),
        ("thought", thought, "Qwen/Qwen3-0.6B", "template"),
    ):
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"messages": [{**user, "content": f"{number}?"}, answer]}) + "\n"
                for number in range(20)
            )
        )
        (tmp_path / name).mkdir()
        write(str(tmp_path / name), str(rows))
        made = config_of(tmp_path / name)
        assert (made.model.id, made.data.chat) == (base, chat)
