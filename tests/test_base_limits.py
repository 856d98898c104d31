"""Tokens beyond a base's embedding, and rows beyond its places, show before a machine is rented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import make_config, make_model, make_rows, make_tokenizer, write_config

from commands.runs.base_tokens import token_faults
from commands.runs.config import check_data_and_model, load
from commands.runs.planning.estimates import length_warning
from commands.ui.errors import UsageError
from trainer.__main__ import main
from trainer.base_limits import (
    Places,
    embedding_rows,
    places,
    require_embedded,
    require_embedded_roles,
    require_places,
)
from trainer.data.examples import collate, load_examples, padding_id
from trainer.data_table import DataTable
from trainer.errors import ConfigError, DataError

TOKENS = 260
"""Of the tiny tokenizer: four special ones, and a byte each."""
RUN = """\
name: padout
vm: {provider: local, gpu: T4, max_price: 0.5}
model: {id: model}
method: {kind: lora, r: 4, alpha: 8}
data: {train: train.jsonl, prompt: "{text}", completion: "{mood}"}
train: {steps: 3, batch_size: 4, max_length: 128}
"""


def base(folder: Path, *, rows: int, tokenizer: Any = None) -> Path:
    """Write a base of so many embedding rows and its tokenizer, data rows and a run.yaml."""
    model = make_model(folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    (tokenizer or make_tokenizer()).save_pretrained(str(model))
    make_rows(folder / "train.jsonl", 8)
    (folder / "run.yaml").write_text(RUN)
    return folder / "run.yaml"


def padded_tokenizer() -> Any:
    """Return the tiny tokenizer with a padding token that was added to it, number 260."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def test_a_padding_token_beyond_the_embedding_is_refused_by_plan(tmp_path: Path) -> None:
    """`[PAD]` that was added without resizing (transformers#22778) is named with its number."""
    run = base(tmp_path, rows=TOKENS, tokenizer=padded_tokenizer())

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(run))
    (problem,) = caught.value.problems
    assert "`pad_token` '[PAD]' is number 260" in problem
    assert "embedding has 260 rows" in problem
    assert "pads by a token that exists" in problem


def test_a_padding_token_beyond_the_embedding_is_refused_by_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit, which loads the tokenizer, refuses the same in its own words, with exit 78."""
    base(tmp_path, rows=TOKENS, tokenizer=padded_tokenizer())
    table = make_config(tmp_path / "model", tmp_path / "train.jsonl")
    write_config(tmp_path / "run", table)

    assert main(["audit", "--run-dir", str(tmp_path / "run")]) == 78
    assert "`pad_token` '[PAD]' is number 260" in capsys.readouterr().err


def test_training_pads_by_a_token_that_exists(tmp_path: Path) -> None:
    """Without a row for `[PAD]`, batches are padded by the unknown token, as if there were none."""
    tokenizer = padded_tokenizer()
    make_rows(tmp_path / "train.jsonl", 8)
    table = DataTable(train="train.jsonl", prompt="{text}", completion="{mood}")
    items = load_examples(table, tmp_path / "train.jsonl", tokenizer, max_length=128).items
    batch = collate(items, padding_id(tokenizer, TOKENS))

    assert padding_id(tokenizer) == TOKENS
    assert padding_id(tokenizer, TOKENS) == tokenizer.unk_token_id
    assert int(batch["input_ids"].max()) < TOKENS


def test_a_run_with_such_a_padding_token_trains_all_the_same(tmp_path: Path) -> None:
    """The trainer itself, which may be started without a plan, ends with an adapter and exit 0."""
    from transformers import AutoModelForCausalLM

    base(tmp_path, rows=320, tokenizer=padded_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(TOKENS)
    model.save_pretrained(tmp_path / "model")
    table = make_config(tmp_path / "model", tmp_path / "train.jsonl", train={"steps": 2})
    write_config(tmp_path / "run", table)

    assert main(["train", "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_tokenizer_of_another_base_is_refused(tmp_path: Path) -> None:
    """A vocabulary that is larger than the embedding is called what it is."""
    run = base(tmp_path, rows=100)

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(run))
    (problem,) = caught.value.problems
    assert "260 tokens, of which 160 lie beyond" in problem
    assert "take the tokenizer that was published with it" in problem


def test_tokens_of_rows_beyond_the_embedding_are_refused_where_the_trainer_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer whose files say too little ends before the base is loaded, with token and row."""
    base(tmp_path, rows=100)
    write_config(tmp_path / "run", make_config(tmp_path / "model", tmp_path / "train.jsonl"))

    assert main(["train", "--run-dir", str(tmp_path / "run")]) == 65
    message = capsys.readouterr().err
    assert "the base's embedding has 100 rows" in message
    assert ", row 1)" in message
    assert "belongs to another base" in message
    assert "Traceback" not in message


def test_a_token_that_nobody_writes_is_accepted(tmp_path: Path) -> None:
    """Gemma 3 1B's tokenizer has a token for pictures beyond its embedding; its rows do not."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    run = base(tmp_path, rows=TOKENS, tokenizer=tokenizer)
    check_data_and_model(load(run))

    assert token_faults(tmp_path / "model", {"vocab_size": TOKENS}) == []
    require_embedded_roles(TOKENS, tokenizer)
    require_embedded([(1, (5, 9))], TOKENS, tokenizer)
    with pytest.raises(DataError, match=r"'<image_soft_token>' \(number 260, row 2\)"):
        require_embedded([(1, (5, 9)), (2, (9, 260))], TOKENS, tokenizer)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"eos_token": {"content": "<end>"},
                                   "added_tokens_decoder": {"300": {"content": "<end>"}}}},
        {"special_tokens_map.json": {"eos_token": "<end>"}, "added_tokens.json": {"<end>": 300}},
        {"tokenizer_config.json": {"eos_token": "<end>"},
         "tokenizer.json": {"added_tokens": [{"id": 300, "content": "<end>"}], "model": {}}},
    ],
    ids=["decoder", "older", "fast"],
)  # fmt: skip
def test_a_role_is_found_in_every_file_that_tokenizers_have_had(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    """The end token's number is read from where each generation of transformers wrote it."""
    for name, table in files.items():
        (tmp_path / name).write_text(json.dumps(table))
    (problem,) = token_faults(tmp_path, {"vocab_size": 300})

    assert "`eos_token` '<end>' is number 300" in problem
    assert token_faults(tmp_path, {"vocab_size": 301}) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model": 5, "added_tokens": {"a": 1}}', '{"model": {"vocab": [1]}}']
)
def test_strange_tokenizer_files_are_no_crash(tmp_path: Path, text: str) -> None:
    """What is no table of tokens has none; other checks tell of it."""
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (tmp_path / name).write_text(text)

    assert token_faults(tmp_path, {"vocab_size": 10}) == []
    assert token_faults(tmp_path, {"vocab_size": "many"}) == []


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({"vocab_size": 32000}, 32000),
        ({"model_type": "gemma3", "text_config": {"vocab_size": 262208}}, 262208),
        # Llama 3.2 Vision looks eight tokens of pictures up beyond its vocabulary.
        ({"model_type": "mllama", "text_config": {"vocab_size": 128256}}, 128264),
        ({"model_type": "qwen2_vl", "vocab_size": 152064, "vision_config": {}}, 152064),
        ({}, None), ({"vocab_size": "big"}, None), ({"vocab_size": -1}, None),
    ],
)  # fmt: skip
def test_rows_of_the_embedding_are_the_text_models(
    config: dict[str, Any], rows: int | None
) -> None:
    """The vocabulary is that of the text part, and unknown where the config has no number."""
    assert embedding_rows(config) == rows


GEMMA_3 = {
    "model_type": "gemma3", "text_config": {"max_position_embeddings": 256},
    "vision_config": {"image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, Places(count=1024, learnt=True)),
        ({"model_type": "opt", "max_position_embeddings": 2048}, Places(count=2048, learnt=True)),
        ({"model_type": "llama", "max_position_embeddings": 4096},
         Places(count=4096, learnt=False)),
        (GEMMA_3, Places(count=256, learnt=False)),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling":
          {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
         Places(count=131072, learnt=False)),
        ({"model_type": "llama", "max_position_embeddings": 131072, "rope_scaling":
          {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
         Places(count=131072, learnt=False)),
        ({"model_type": "llama", "max_position_embeddings": "x", "rope_scaling": 5}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_places_are_those_of_the_text(config: dict[str, Any], expected: Places | None) -> None:
    """A picture's grid limits no text (trl#5032), nor do places that only count distances."""
    assert places(config) == expected


def test_a_row_beyond_learnt_places_is_refused_and_beyond_others_warned_of() -> None:
    """Where there is nothing to look up the row is refused; else it is foreign to the base."""
    with pytest.raises(ConfigError, match="a row has 1100 tokens, and the base has places for 10"):
        require_places(1100, Places(count=1024, learnt=True))
    message = require_places(1100, Places(count=1024, learnt=False))

    assert message is not None
    assert "made for texts of 1024 at most" in message
    assert require_places(1024, Places(count=1024, learnt=True)) is None
    assert require_places(5000, None) is None


def test_an_audit_warns_of_rows_that_are_longer_than_the_base_is_used_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning has both lengths, and the rows are shown all the same."""
    base(tmp_path, rows=320)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 16}))
    write_config(tmp_path / "run", make_config(tmp_path / "model", tmp_path / "train.jsonl"))

    assert main(["audit", "--run-dir", str(tmp_path / "run")]) == 0
    assert "and the base was made for texts of 16 at most" in capsys.readouterr().out


def test_a_plan_warns_of_a_max_length_beyond_the_places(tmp_path: Path) -> None:
    """`train.max_length` above what the base has is told with both numbers, before renting."""
    run = base(tmp_path, rows=320)
    config = tmp_path / "model" / "config.json"
    table = json.loads(config.read_text())
    config.write_text(json.dumps(table | {"max_position_embeddings": 100}))
    message = length_warning(load(run))
    config.write_text(json.dumps(table | {"max_position_embeddings": 128}))

    assert "`train.max_length` is 128" in message
    assert "texts of up to 100 tokens" in message
    assert length_warning(load(run)) == ""
