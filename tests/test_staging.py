"""Of a base's folder that travels which a trainer loads, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import tiny

from commands.runs.payload import Staged
from remote.on_machine import tree_ops

LOADED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def staged(model: Path | None) -> Staged:
    """What would be pushed with this base."""
    return Staged(trainer=Path(), data={}, config=Path(), model=model)


def sent(model: Path) -> set[str]:
    """The files of a base that a push would list."""
    found = tree_ops.scan(str(model), staged(model).left_out, follow_links=True)["files"]
    return set(found) - {"tokenizer_config.json", "special_tokens_map.json"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A real base, as a clone of a hub's repository leaves it with all that lies beside it."""
    model = tiny.make_model(tmp_path / "model")
    beside = [
        *(".git/lfs/objects/ab/abcd", ".cache/huggingface/x.lock", ".DS_Store", "README.md"),
        *("onnx/model.onnx", "original/consolidated.00.pth", "checkpoint-500/model.safetensors"),
        *("optimizer.pt", "rng_state_0.pth", "model-q4.gguf", "tf_model.h5", "flax_model.msgpack"),
    ]
    for name in beside:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"large")
    return model


def test_what_no_trainer_loads_is_not_sent(base: Path) -> None:
    """Histories, optimizer states and other formats would cost hours of a home's uplink."""
    (base / "pytorch_model.bin").write_bytes(b"the same weights once more")
    (base / "chat_template.jinja").write_text("{{ messages }}")

    assert sent(base) == {*LOADED, "chat_template.jinja"}


def test_older_weights_are_sent_where_there_are_no_others(base: Path) -> None:
    """A base that has only `pytorch_model.bin` is trained from that."""
    shutil.move(base / "model.safetensors", base / "pytorch_model.bin")

    assert sent(base) == LOADED - {"model.safetensors"} | {"pytorch_model.bin"}
    assert staged(None).left_out == ()
