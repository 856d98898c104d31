"""Of a base's folder that travels which a trainer loads; the item decides, not its label."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support import sshd, tiny

from commands.runs.payload import Payload, PayloadItem
from commands.runs.result_files import Expected
from commands.runs.workload import SshWorkload
from commands.runs.workload_config import RemoteLayout, WorkloadConfig
from infra.provider import Vm
from remote.on_machine import tree_ops
from trainer.method_table import MethodTable

LOADED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def prepared(model: Path | None) -> Payload:
    """What would be pushed with this base."""
    return Payload(trainer=Path(), data={}, config=Path(), model=model)


def sent(model: Path) -> set[str]:
    """The files of a base that a push would list."""
    found = tree_ops.hash_tree(str(model), prepared(model).left_out, follow_links=True)["files"]
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
    assert prepared(None).left_out == ()


class Reworded(Payload):
    """The same payload with other labels."""

    def items(self, base: str) -> list[PayloadItem]:
        """The items, each named as the next one is."""
        items = super().items(base)
        labels = [item.label for item in items[1:] + items[:1]]
        return [replace(item, label=label) for item, label in zip(items, labels, strict=True)]


@pytest.mark.parametrize("kind", [Payload, Reworded])
def test_what_travels_and_what_is_deleted_does_not_hang_on_labels(
    kind: type[Payload], tmp_path: Path, base: Path
) -> None:
    """Code and base become exact copies; other rows and checkpoints stay where they are."""
    here, row = tmp_path / "here", tmp_path / "rows.jsonl"
    (here / "trainer").mkdir(parents=True)
    for file in (here / "trainer" / "new.py", here / "config.json", row):
        file.write_text("{}")
    with sshd.serve(tmp_path / "there") as server:
        run = server.home / "qft" / "r"
        for name in ("code/trainer/old.py", "model/old.json", "data/old.jsonl", "run/checkpoint"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("from before")
        work = SshWorkload(
            WorkloadConfig(
                layout=RemoteLayout(run_id="r"),
                key_path=server.client_key,
                payload=kind(
                    trainer=here / "trainer",
                    data={"train.jsonl": row},
                    config=here / "config.json",
                    model=base,
                ),
                home=tmp_path / "home",
                out=tmp_path / "out",
                make_ready=lambda connection, _vm: (connection, "python3"),
                cache=tmp_path / "cache",
                rents=False,
                eviction_band=lambda: "",
                on_message=lambda _text: None,
                progress=lambda *_: None,
                expected=lambda: Expected(
                    method=MethodTable(), tensor_bytes_max=1 << 20, steps_max=10
                ),
            )
        )
        work.prepare(
            Vm(
                provider="ssh",
                run_id="r",
                id="v",
                region="a",
                size="s",
                host="127.0.0.1",
                port=server.port,
                user=server.user,
                host_public_key=server.host_key,
            )
        )
        work.disconnect()
        found = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}

    model = {f"model/{name}" for name in sent(base)}
    beside = {"model/tokenizer_config.json", "model/special_tokens_map.json"}
    rest = {"code/trainer/new.py", "data/train.jsonl", "data/old.jsonl"}
    assert found - beside == model | rest | {"run/config.json", "run/checkpoint"}
