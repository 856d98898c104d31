"""Published data sets become rows by their published rules, and nothing is lost unsaid."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.tiny import ROOT, make_tokenizer

from trainer.__main__ import main
from trainer.data.convert import convert
from trainer.data.converters import (
    FORMATS,
    TOXIC,
    ConversionStats,
    ConvertOptions,
    PublishedFormat,
)
from trainer.data.split import find_duplicates, is_held_out
from trainer.errors import DataError


def converted(
    kind: str, path: Path, **options: Any
) -> tuple[list[dict[str, Any]], ConversionStats]:
    """All rows of a source, and the tally."""
    stats = ConversionStats()
    return list(FORMATS[kind].convert(path, ConvertOptions(**options), stats)), stats


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a JSON list."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_jigsaw(path: Path, count: int, *, step: int = 1) -> Path:
    """Write comments that span lines and hold quotes; every seventh is toxic, some more so."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "comment_text", *TOXIC])
        for number in range(count)[::step]:
            toxic = number % 7 == 0
            flags = [toxic, False, toxic and number % 2 == 0, False, number % 21 == 0, False]
            text = f'"comment {number}\n\nsays ""so"", and more'
            writer.writerow([f"{number:016x}", text, *map(int, flags)])
    return path


def test_jigsaw_keeps_the_malicious_and_draws_the_benign(tmp_path: Path) -> None:
    """All labelled rows, the wanted number of others, labels joined as published."""
    rows, stats = converted("jigsaw", write_jigsaw(tmp_path / "t.csv", 210), benign=40)

    assert stats.classes == {"benign": 40, "toxic": 30, "obscene": 15, "insult": 10}
    assert (stats.read, stats.kept) == (210, 70)
    assert {row["classifications"] for row in rows} == {
        "N/A", "toxic", "toxic, obscene", "toxic, insult", "toxic, obscene, insult",
    }  # fmt: skip
    assert rows[0]["text"] == '"comment 0\n\nsays ""so"", and more'


def test_jigsaws_equal_comments_are_one_group(tmp_path: Path) -> None:
    """Comments that differ in case and marks only stay on one side; bare marks are texts too."""
    path = tmp_path / "t.csv"
    texts = ("Go away", "go, AWAY!", "!!!", "???")
    lines = [f"{number:016x},{text!r},1,0,0,0,0,0\n" for number, text in enumerate(texts)]
    path.write_text(
        ",".join(("id", "comment_text", *TOXIC)) + "\n" + "".join(lines).replace("'", '"')
    )
    groups = [row["group"] for row in converted("jigsaw", path)[0]]

    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_jigsaws_draw_depends_on_the_seed_and_not_on_the_sequence(tmp_path: Path) -> None:
    """The same comments are drawn from a file turned round, others with another seed."""
    forth, back = (
        write_jigsaw(tmp_path / "a.csv", 300),
        write_jigsaw(tmp_path / "b.csv", 300, step=-1),
    )
    drawn = {row["text"] for row in converted("jigsaw", forth, benign=50)[0]}

    assert {row["text"] for row in converted("jigsaw", back, benign=50)[0]} == drawn
    assert {row["text"] for row in converted("jigsaw", forth, benign=50, seed=1)[0]} != drawn


def test_jigsaw_leaves_out_what_does_not_decode_or_fit_and_says_so(tmp_path: Path) -> None:
    """Undecodable bytes cost their own record only; long ones are dropped before drawing."""
    path = write_jigsaw(tmp_path / "t.csv", 21)
    raw = path.read_bytes().replace(b"comment 3\n", b"comment \xe9\xff\n")
    path.write_bytes(raw)
    rows, stats = converted("jigsaw", path, fits=lambda text: "comment 14" not in text)

    assert stats.left_out == {"does not decode": 1, "too long": 1}
    assert stats.places["does not decode"] == ["t.csv:4"]
    assert (stats.read, len(rows)) == (21, 19)


def test_jigsaws_length_is_counted_in_tokens_of_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--tokenizer` drops what is too long, without a warning that nothing was measured."""
    make_tokenizer().save_pretrained(str(tmp_path / "base"))
    source = write_jigsaw(tmp_path / "t.csv", 8)
    source.write_text(source.read_text().replace("comment 3\n", "comment 3" + " and" * 90 + "\n"))
    words = ["jigsaw", str(source), "--out", str(tmp_path), "--tokenizer", str(tmp_path / "base")]

    assert main(["convert", *words, "--max-length", "80", "--held-out", "0.5"]) == 0
    output = capsys.readouterr().err
    assert "left out:       1  too long (t.csv:4)" in output
    assert "published rule" not in output
    assert main(["convert", *words[:-1], str(tmp_path / "nothing")]) == 65
    assert "--tokenizer: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sentiment", "--tokenizer", "base"], "--tokenizer: sentiment has no such choice"),
        (["ds1000", "--benign", "0"], "--benign: ds1000 has no such choice"),
        (["jigsaw", "--max-length", "3"], "say of which base with --tokenizer MODEL"),
    ],
)
def test_a_choice_that_would_choose_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """An option that the format has no use for is an error instead of a false comfort."""
    assert main(["convert", words[0], str(tmp_path / "rows.jsonl"), *words[1:]]) == 65
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("threat", "menace", r"no column `threat`\n.*`menace` is no label known here"),
        ('more",1', 'more",2', "t.csv:1: a label must be 0 or 1, not '2'"),
    ],
)
def test_labels_outside_the_listed_ones_are_an_error(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    """An unknown column and a value that is no flag stop the conversion, and nothing is written."""
    path = write_jigsaw(tmp_path / "t.csv", 8)
    path.write_text(path.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        convert("jigsaw", path, tmp_path / "out", options=ConvertOptions(), held_out=0.1)

    assert list((tmp_path / "out").iterdir()) == []


def test_jigsaws_flags_may_be_numbers(tmp_path: Path) -> None:
    """Its rows in JSON carry the same labels as in CSV, and one without a flag is named."""
    flags = dict.fromkeys(TOXIC, 0)
    rows = [{"id": f"{n}", "comment_text": "x", **flags, "threat": n} for n in (0, 1)]
    found, _ = converted("jigsaw", write_json(tmp_path / "t.json", rows))

    assert [row["classifications"] for row in found] == ["N/A", "threat"]
    with pytest.raises(DataError, match=r"t\.json:2: a label must be 0 or 1, not ''"):
        converted("jigsaw", write_json(tmp_path / "t.json", [rows[0], {"id": "2"}]))


@pytest.mark.parametrize("kind", ["jigsaw", "sentiment"])
def test_a_stray_quote_loses_no_rows_unsaid(kind: str, tmp_path: Path) -> None:
    """A file that cannot be read to its end is an error with the place, and nothing is written."""
    path = write_jigsaw(tmp_path / "t.csv", 8)
    text = path.read_text(encoding="utf-8").replace('"comment 3', '"comment" 3')
    path.write_text(text.replace("comment_text", "text" if kind == "sentiment" else "comment_text"))
    with pytest.raises(DataError, match=r"t\.csv:4: not CSV \(',' expected after '\"'"):
        convert(kind, path, tmp_path / "out", options=ConvertOptions(), held_out=0.1)

    assert list((tmp_path / "out").iterdir()) == []


def test_rows_that_cannot_be_read_are_left_out_by_what_is_wrong(tmp_path: Path) -> None:
    """Missing cells, bytes that are no text and lines that are no JSON have a name each."""
    table = write_jigsaw(tmp_path / "t.csv", 4)
    with table.open("ab") as file:
        file.write(b"00,short,0\n" + b"01,\xff,0,0,0,0,0,0\n")
    lines = tmp_path / "a: b.jsonl"
    lines.write_bytes(b'{"Context": "a", "Response": "b"}\n{"Context": \n[1]\n')
    comments, pairs = converted("jigsaw", table)[1], converted("counselling", lines)[1]

    assert comments.places == {
        "3 cells where the header has 8": ["t.csv:5"], "does not decode": ["t.csv:6"],
    }  # fmt: skip
    assert comments.table().count("...") == 0
    assert pairs.places == {
        "not JSON": ["a: b.jsonl:2"],
        "a row must be a JSON object, this one is a list": ["a: b.jsonl:3"],
    }
    assert (pairs.read, pairs.kept) == (3, 1)


def test_ds1000_keeps_indentation_and_families(tmp_path: Path) -> None:
    """Code is never stripped, and perturbations of one problem are one group."""
    about = {"library": "Pandas", "perturbation_origin_id": 7, "problem_id": 9}
    path = write_json(
        tmp_path / "d.json",
        [
            {"prompt": "p\n<code>\n", "reference_code": "    a = 1\n", "metadata": about},
            {"prompt": "q", "reference_code": " b", "metadata": about | {"problem_id": 10}},
            {"prompt": "r", "reference_code": "", "metadata": about},
            {
                "prompt": "s",
                "reference_code": "c",
                "metadata": about | {"perturbation_origin_id": None},
            },
        ],
    )
    rows, stats = converted("ds1000", path)

    assert [(row["code"], row["group"]) for row in rows] == [
        ("    a = 1\n", "Pandas/7"), (" b", "Pandas/7"), ("c", "Pandas/9"),
    ]  # fmt: skip
    assert stats.left_out == {"no prompt or no reference code": 1}


def test_counselling_keeps_all_answers_to_a_context_together(tmp_path: Path) -> None:
    """The same pair counts once; several answers to one question share a group."""
    path = write_json(
        tmp_path / "c.json",
        [
            {"Context": " I worry.", "Response": "A "}, {"Context": "I worry!", "Response": "B"},
            {"Context": "I worry.", "Response": "A"}, {"Context": "", "Response": "C"},
        ],
    )  # fmt: skip
    rows, stats = converted("counselling", path)

    assert [(row["context"], row["response"]) for row in rows] == [
        ("I worry.", "A"), ("I worry!", "B"),
    ]  # fmt: skip
    assert rows[0]["group"] == rows[1]["group"]
    assert stats.left_out == {"the same pair again": 1, "an empty Context or Response": 1}


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    """A conversation in ShareGPT's form."""
    return {
        "id": "abcdefg_0",
        "conversations": [{"from": who, "value": says} for who, says in pairs],
    }


def test_conversations_report_every_kind_of_disorder(tmp_path: Path) -> None:
    """Good ones become messages; bad order, silence and strangers are left out by name."""
    path = write_json(
        tmp_path / "s.json",
        [
            turns(("human", "hi"), ("gpt", "hello"), ("human", "and?")),
            turns(("gpt", "hello"), ("human", "hi")),
            turns(("human", "hi"), ("gpt", " ")),
            turns(("human", "hi"), ("alien", "x")),
            turns(("human", "hi")),
            turns(("system", "be kind"), ("human", "hi"), ("gpt", "hello")),
            {"id": "x", "conversations": "hi"},
        ],
    )
    rows, stats = converted("conversations", path)

    assert [[m["role"] for m in row["messages"]] for row in rows] == [
        ["user", "assistant"], ["system", "user", "assistant"],
    ]  # fmt: skip
    assert rows[0]["group"] == "abcdefg"
    assert stats.left_out == {
        "turns out of order": 1, "an empty turn": 1, "an unknown speaker": 1, "no answer": 1,
        "no list of turns": 1,
    }  # fmt: skip


def test_a_rest_of_json_behind_a_conversation_is_cut_off_and_counted(tmp_path: Path) -> None:
    """One closing brace too much goes, code keeps its own; unnamed conversations stay apart."""
    output = ("Sure.}", "f() {}", "a }", "}")
    path = write_json(
        tmp_path / "v.json",
        [turns((" Human", "hi"), ("gpt", text)) | {"id": None} for text in output],
    )
    rows, stats = converted("conversations", path)

    assert [row["messages"][-1]["content"] for row in rows] == ["Sure.", "f() {}", "a ", "}"]
    assert "mended:         2  a `}` too much at the end" in stats.table()
    assert len({row["group"] for row in rows}) == 4


def test_the_command_tells_counts_as_json_and_what_authors_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the table shows a program can read; a side without rows and a wish are told."""
    about = {"library": "Pandas", "problem_id": 1}
    row = {"prompt": "p", "reference_code": "c", "metadata": about}
    path = write_json(tmp_path / "d.json", [row, row | {"reference_code": ""}])

    assert (
        main(["convert", "ds1000", str(path), "--out", str(tmp_path), "--held-out", "0", "--json"])
        == 0
    )
    message = capsys.readouterr()
    assert json.loads(message.out) == {
        "rows": {"train": 1, "eval": 0}, "read": 2, "kept": 1, "classes": {"Pandas": 1},
        "left_out": {"no prompt or no reference code": 1}, "mended": {}, "across": 0,
        "places": {"no prompt or no reference code": ["d.json:2"]},
    }  # fmt: skip
    assert "warning: no row is held out" in message.err
    assert "ask that it never enters a training corpus" in message.err


def test_sentiments_and_instructions(tmp_path: Path) -> None:
    """Numbers become words, and an instruction has its input behind it only if there is one."""
    (tmp_path / "i.csv").write_text('label,text\n1,"good, really"\n0,bad\n', encoding="utf-8")
    moods, _ = converted("sentiment", tmp_path / "i.csv")
    path = write_json(
        tmp_path / "a.json",
        [
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            {"instruction": "Sing.", "input": "No input", "output": "la"},
            {"instruction": "Sing.", "input": "", "output": ""},
        ],
    )
    instructions, stats = converted("instructions", path)

    assert [(row["text"], row["label"]) for row in moods] == [
        ("good, really", "positive"), ("bad", "negative"),
    ]  # fmt: skip
    assert [row["request"] for row in instructions] == ["Add.\n\n1 1", "Sing."]
    assert stats.classes == {"with input": 1, "without input": 1}


def test_code_among_instructions_keeps_its_first_indentation(tmp_path: Path) -> None:
    """Instruction, input and output are learnt to the last space; spaces alone are none."""
    row = {"instruction": "Go on: ", "input": "  for x in y:", "output": "    print(x)\n"}
    bare = row | {"input": " \n"}
    path = write_json(tmp_path / "a.json", [row, bare, row | {"output": " "}])
    rows, stats = converted("instructions", path)

    assert [(one["request"], one["answer"]) for one in rows] == [
        ("Go on: \n\n  for x in y:", "    print(x)\n"), ("Go on: ", "    print(x)\n"),
    ]  # fmt: skip
    assert stats.left_out == {"no instruction or no output": 1}


def test_converting_writes_both_sides_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command splits by group, writes JSONL, and shows classes and losses."""
    source = write_jigsaw(tmp_path / "t.csv", 210)
    code = main(
        [
            "convert",
            "jigsaw",
            str(source),
            "--out",
            str(tmp_path),
            "--benign",
            "40",
            "--held-out",
            "0.5",
        ]
    )
    sides = [
        {json.loads(line)["group"] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("train.jsonl", "eval.jsonl")
    ]

    assert code == 0
    assert sum(map(len, sides)) == 70
    assert min(map(len, sides)) > 20
    output = capsys.readouterr().err
    assert "     15  obscene\n" in output
    assert "the published rule drops those over 1024 tokens" in output
    assert main(["convert", "jigsaw", str(tmp_path / "no.csv"), "--out", str(tmp_path)]) == 65


def test_rows_on_both_sides_of_a_split_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two comments with the same words and other ids may part; how many did is a warning."""
    path = tmp_path / "pairs.json"
    rows = [
        {
            "id": f"c{at}",
            "conversations": [
                {"from": "human", "value": f"Why {at % 5}?"},
                {"from": "gpt", "value": "So!" if at < 20 else "so"},
            ],
        }
        for at in range(40)
    ]
    write_json(path, rows)
    code = main(
        ["convert", "conversations", str(path), "--out", str(tmp_path), "--held-out", "0.5"]
    )
    output = capsys.readouterr().err
    held_out = len((tmp_path / "eval.jsonl").read_text(encoding="utf-8").splitlines())

    assert code == 0
    assert held_out > 5
    assert f"warning: {held_out} held-out rows stand among those to learn too" in output


@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_never_torn(seed: int, tmp_path: Path) -> None:
    """All answers to one question stand on one side, and every row on exactly one."""
    pairs = [{"Context": f"Why {at % 9}?", "Response": f"So {at}!"} for at in range(40)]
    path = write_json(tmp_path / "c.json", pairs)
    convert("counselling", path, tmp_path, options=ConvertOptions(seed=seed), held_out=0.5)
    sides = [
        [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        for name in ("train.jsonl", "eval.jsonl")
    ]
    contexts = [{row["context"] for row in side} for side in sides]

    assert all(contexts)
    assert not contexts[0] & contexts[1]
    assert len(sides[0]) + len(sides[1]) == 40


def test_the_documents_name_every_published_format() -> None:
    """Each row of the table in docs/data.md is a converter, and each converter has a row."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.partition("## Published data sets")[2].partition("\n\nWhat is left out")[0]

    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORMATS)
    assert set(FORMATS) == set(PublishedFormat)


def test_about_the_wanted_share_is_held_out() -> None:
    """Of 5000 groups a tenth is held out, give or take."""
    assert 440 < sum(is_held_out(str(n), share=0.1, seed=0) for n in range(5000)) < 560


def test_duplicates_within_and_across_are_found() -> None:
    """Equal texts, texts equal but for marks, and held-out texts that were trained on."""
    found = find_duplicates(
        [(1, "Hello you"), (2, "Hello you"), (3, "hello, YOU!"), (4, "other")],
        [(1, "HELLO you."), (2, "new")],
    )

    assert (found.exact, found.near) == (1, 1)
    assert (found.across, found.across_count) == (((1, 1),), 1)
