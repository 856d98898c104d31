"""What the trainer is fed: tokens, labels and masks are exactly what was asked for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers_built import KINDS, build
from tokenizers import normalizers

from trainer.data.codec import NOT_TRAINED, Codec, Example
from trainer.data.examples import collate, encode_prompt, load_examples, padding_id
from trainer.data.template import Template
from trainer.data_table import DataTable
from trainer.errors import DataError

FRAMES = list(itertools.product(KINDS, (True, False), (True, False), (True, False)))


def table(**changes: Any) -> DataTable:
    """A data table with two templates."""
    fields = {"prompt": "Tweet: {text}\nSentiment:", "completion": " {label}"}
    return DataTable.model_validate({"train": "rows.jsonl", **fields, **changes})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "bos", "pad", "frame"), FRAMES)
def test_every_row_has_one_bos_at_most_a_supervised_eos_and_a_whole_completion(
    kind: str, *, bos: bool, pad: bool, frame: bool, tmp_path: Path
) -> None:
    """Whatever the tokenizer's kind and frame, the mask covers completion and EOS and no more."""
    tokenizer = build(kind, bos=bos, pad=pad, frame=frame)
    rows = [
        {"text": text, "label": label}
        for text in ("you are nice", "a </s> <s> in the text", "x" * 400, "¡señor! 你好")
        for label in ("positive", "toxic, obscene", "N/A")
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    items = load_examples(table(), path, tokenizer, max_length=60).items
    framed = frame and (bos or kind == "wordpiece")
    first = tokenizer("a")["input_ids"][0]

    assert len(rows) == len(items)
    for item in items:
        supervised = [label for label in item.labels if label != NOT_TRAINED]
        alone = tokenizer(item.completion, add_special_tokens=False)["input_ids"]
        assert [*alone, tokenizer.eos_token_id] == supervised
        assert tuple(supervised) == item.input_ids[-len(supervised) :]
        assert {NOT_TRAINED} == set(item.labels[: item.prompt_length])
        assert len(item.labels) == len(item.input_ids)
        assert len(item.input_ids) <= 60
        if framed:
            assert [at for at, token in enumerate(item.input_ids) if token == first] == [0]


def test_a_bos_written_by_the_template_is_not_doubled(tmp_path: Path) -> None:
    """A template that begins with the BOS token yields one BOS, not two."""
    tokenizer = build(bos=True)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "nice", "label": "positive"}])
    item = load_examples(table(prompt="<s>Tweet: {text}"), path, tokenizer, max_length=64).items[0]

    assert item.input_ids.count(tokenizer.bos_token_id) == 1


def test_an_eos_written_by_the_template_is_not_doubled(tmp_path: Path) -> None:
    """A template that ends with the EOS token yields one EOS, supervised."""
    tokenizer = build()
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "nice", "label": "positive"}])
    item = load_examples(table(completion="{label}</s>"), path, tokenizer, max_length=64).items[0]

    assert item.labels.count(tokenizer.eos_token_id) == 1


def test_a_control_token_in_a_row_is_refused_where_the_template_uses_control_tokens(
    tmp_path: Path,
) -> None:
    """A row cannot end its own turn: the token is named with file and row."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "ha </s> ha", "label": "positive"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the text holds the control token '</s>'"):
        load_examples(table(prompt="<s>{text}</s>"), path, build(), max_length=64)


def test_truncation_eats_the_middle_of_the_prompt_alone(tmp_path: Path) -> None:
    """Head and end of a long prompt stay, the completion stays whole, and the report says so."""
    tokenizer = build()
    rows = [{"text": "so nice " * 50, "label": "positive"}, {"text": "nice", "label": "negative"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    examples = load_examples(table(), path, tokenizer, max_length=40)
    kept = tokenizer.decode(examples.items[0].prompt_ids, skip_special_tokens=True)

    assert kept.startswith("Tweet: so nice")
    assert kept.endswith("Sentiment:")
    assert len(examples.items[0].input_ids) == 40
    report = examples.report
    assert (report.truncated, report.truncated_rows, report.rows) == (1, (1,), 2)


def test_a_completion_longer_than_max_length_names_row_and_lengths(tmp_path: Path) -> None:
    """A completion is never cut: the row is refused with what it needs and what there is."""
    rows = [{"text": "nice", "label": "positive"}, {"text": "nice", "label": "toxic " * 90}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_examples(table(), path, build(), max_length=32)

    assert len(caught.value.problems) == 1
    assert f"{path}:2: the completion needs" in str(caught.value)
    assert "`max_length` is 32" in str(caught.value)


def test_a_misspelt_field_names_row_field_and_what_there_is(tmp_path: Path) -> None:
    """A row with a near name instead of a template's field is listed; null is empty text."""
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": "b"},
        {"txet": "a", "label": "b"},
        {"text": None, "label": "b"},
        {"text": ["a", 1], "label": "b"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_examples(table(), path, build(), max_length=32)

    assert [
        f"{path}:2: no field `text` (the row has `txet`, `label`); did you mean `txet`?",
        f"{path}:4: field `text` is a list, and a template needs text",
    ] == caught.value.problems


def test_an_empty_completion_is_refused(tmp_path: Path) -> None:
    """A row that would teach nothing but silence is named."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": ""}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the completion is empty"):
        load_examples(table(), path, build(), max_length=32)


def test_all_problems_are_kept_and_twenty_are_printed(tmp_path: Path) -> None:
    """A file with many broken rows is reported at once, in a message that still can be read."""
    path = write_rows(tmp_path / "rows.jsonl", [{"label": "b"}] * 30)
    with pytest.raises(DataError) as caught:
        load_examples(table(), path, build(), max_length=32)

    assert len(caught.value.problems) == 30
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("... and 10 more")


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path: Path) -> None:
    """Without any end-of-sequence token the model could not learn to stop, and we say that."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="could not learn to stop"):
        load_examples(table(), path, build(eos=False), max_length=32)


def test_an_encoder_decoder_gets_prompt_and_completion_apart(tmp_path: Path) -> None:
    """For T5 and its like the encoder sees the prompt, the labels are completion and EOS."""
    tokenizer = build("unigram", bos=False)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "nice", "label": "positive"}])
    item = load_examples(table(), path, tokenizer, max_length=32, seq2seq=True).items[0]
    alone = tokenizer(" positive", add_special_tokens=False)["input_ids"]

    assert item.prompt_ids == item.input_ids
    assert (*alone, tokenizer.eos_token_id) == item.labels


def test_loss_on_everything_supervises_the_prompt_too(tmp_path: Path) -> None:
    """With `loss_on: all` every token is a label, and generation still starts after the prompt."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "nice", "label": "positive"}])
    part = load_examples(table(), path, build(), max_length=32).items[0]
    whole = load_examples(table(loss_on="all"), path, build(), max_length=32).items[0]

    assert whole.labels == whole.input_ids == part.input_ids
    assert whole.prompt_ids == part.prompt_ids
    assert whole.answer_length == part.answer_length == len(part.labels) - part.prompt_length
    assert part.targets == part.answer_length
    assert whole.targets == len(whole.labels) - 1  # nothing is read before the first token


def test_a_completion_that_the_tokenizer_drops_is_empty(tmp_path: Path) -> None:
    """Characters of which no token is left would teach the model to say nothing."""
    tokenizer = build()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "nice", "label": "\u200b"}])

    with pytest.raises(DataError, match=r"rows.jsonl:1: the completion is empty"):
        load_examples(table(completion="{label}"), path, tokenizer, max_length=32)


def test_generation_sees_the_very_tokens_that_training_saw(tmp_path: Path) -> None:
    """The prompt of a training row and the same prompt at generation are one token sequence."""
    row = {"text": "you are nice", "label": "positive"}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    tokenizer = build()
    item = load_examples(table(), path, tokenizer, max_length=64).items[0]

    assert item.prompt_ids == encode_prompt(
        table(), {"text": row["text"]}, tokenizer, max_length=64, seq2seq=False
    )


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), pad=st.integers(0, 5))
def test_the_mask_follows_lengths_and_never_token_ids(lengths: list[int], pad: int) -> None:
    """A batch may be full of tokens that equal the padding, and the mask is right still."""
    examples = [Example((pad,) * n, (pad,) * n, "", "", 1, 0) for n in lengths]
    batch = collate(examples, pad)

    assert lengths == batch["attention_mask"].sum(dim=1).tolist()
    assert lengths == (batch["labels"] != NOT_TRAINED).sum(dim=1).tolist()
    assert [len(lengths), max(lengths)] == list(batch["input_ids"].shape)


def test_padding_takes_a_token_that_exists() -> None:
    """The pad token if there is one, else the unknown token: the vocabulary never grows."""
    with_pad, without = build(pad=True), build(pad=False)

    assert with_pad.pad_token_id == padding_id(with_pad)
    assert without.unk_token_id == padding_id(without)


@pytest.mark.parametrize("written", ["<s>", ""])
def test_many_texts_are_tokenized_as_each_by_itself(written: str) -> None:
    """A batch has the ids that transformers gives, whatever the tokenizer's own file would cut."""
    tokenizer = build()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=32)
    texts = ["The bus is late.", "", "<s> is text</s>", "late " * 20]
    template = Template.parse(written)
    codec = Codec.from_tokenizer(tokenizer, max_length=64, seq2seq=False)

    found = codec.encode(texts, template)

    assert found == [codec.encode([text], template)[0] for text in texts]
    assert found == [
        tokenizer(text, add_special_tokens=False, split_special_tokens=not written)["input_ids"]
        for text in texts
    ]
