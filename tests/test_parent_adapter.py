"""A training goes on from an adapter: its weights are the start, and its settings those of the run.

PEFT is the reference: what it computes with the adapter is what the first step begins with.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.adapters import logits, plain_peft
from support.mixtures import make_mixture
from support.models import load, make_adapter
from support.rig import outcome_tensors, restored, rig

from trainer.__main__ import main
from trainer.adapters.parent import adapter_sha256, inherit, read_parent
from trainer.config import TrainerConfig, load_config
from trainer.errors import ConfigError
from trainer.job.context import JobOptions, with_parent
from trainer.job.job import run_job
from trainer.method_table import MethodKind, MethodTable
from trainer.pages.run_files import build_report
from trainer.results import publish
from trainer.results.base_name import BaseName
from trainer.rundir.layout import data_facts, training_facts

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model."""
    return tiny.make_model(tmp_path_factory.mktemp("base") / "model")


def lay_out(base: Path, place: Path, **method: Any) -> Path:
    """Write a run directory that goes on from `../parent`, and return it."""
    rows = tiny.make_rows(place / "train.jsonl", 20)
    config = tiny.make_config(base, rows, train={"steps": 6}, checkpoint={"every": 2})
    config["method"] = {"from": "../parent", **method}
    return tiny.write_config(place / "run", config)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "lora"),
        ({}, "qlora"),
        ({"use_dora": True}, "dora"),
        ({"use_rslora": True, "target_modules": ["q_proj", "up_proj"]}, "rslora"),
    ],
)
def test_the_start_is_what_peft_computes_with_the_adapter(
    base: Path, tmp_path: Path, settings: dict[str, Any], kind: str
) -> None:
    """Rank, scale and layers come from PEFT's files, also where its numbers have 16 bits."""
    parent = tmp_path / "parent"
    make_adapter(base, parent, r=3, lora_alpha=5, **settings)
    tensors = load_file(parent / "adapter_model.safetensors")
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves, parent / "adapter_model.safetensors", metadata={"format": "pt"})
    made = rig(lay_out(base, tmp_path, kind=kind))

    assert torch.equal(logits(made.context.model, made), logits(plain_peft(made, parent), made))
    assert {value.dtype for value in made.state.parameters.values()} == {torch.float32}
    assert made.state.optimizer.state == {}
    assert any("the optimizer begins anew" in line for line in made.messages)


@pytest.fixture(scope="module")
def continued(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a finished qlora run in `first`, its adapter as `parent`, and a run from it."""
    place = tmp_path_factory.mktemp("continued")
    rows = tiny.make_rows(place / "train.jsonl", 20)
    method = {"kind": "qlora", "r": 3, "alpha": 5, "targets": ["q_proj", "down_proj"]}
    config = tiny.make_config(base, rows, train={"steps": 3})
    first = tiny.write_config(place / "first", {**config, "method": method})
    run_job(JobOptions(run_dir=first), print)
    shutil.copytree(first / "adapter", place / "parent")
    run_job(JobOptions(run_dir=lay_out(base, place, dropout=0.1)), print)
    return place


def test_the_run_names_its_parent_and_has_its_settings(continued: Path) -> None:
    """Rank, alpha, layers, kind and base are the parent's; its SHA-256 is in receipt and facts."""
    receipt = json.loads((continued / "run" / "adapter" / "qft.json").read_text())
    digest = adapter_sha256(continued / "parent")
    latest = continued / "run" / "checkpoints" / "step-00000006" / "fingerprint.json"
    kept = {key: receipt["training"][f"method.{key}"] for key in ("kind", "r", "alpha", "targets")}

    assert kept == {"kind": "qlora", "r": 3, "alpha": 5.0, "targets": ["down_proj", "q_proj"]}
    assert receipt["parent"] == {"name": "../parent", "sha256": digest}
    assert receipt["training"]["method.from"] == digest
    assert json.loads(latest.read_text())["data"]["method.from"] == digest


def test_killed_and_started_again_it_ends_with_the_same_bits(
    continued: Path, base: Path, tmp_path: Path
) -> None:
    """The checkpoint decides, and not the parent, from which weights a resumed run goes on."""
    shutil.copytree(continued / "parent", tmp_path / "parent")
    run = lay_out(base, tmp_path, dropout=0.1)
    for stop in (2, 5):
        made = restored(run)
        made.train(until=stop)
        made.save()
    last = restored(run)
    last.train(until=6)
    last.context.method.save(tmp_path)

    assert last.state.counters.step == 6
    assert tiny.losses(run) == tiny.losses(continued / "run")
    whole = (continued / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == whole
    assert outcome_tensors(last) != outcome_tensors(rig(run))


def test_peft_loads_the_result_and_a_merge_agrees_with_it(
    continued: Path, base: Path, tmp_path: Path
) -> None:
    """What a second training has learnt is an adapter on the same base as any other."""
    trained = load_file(continued / "run" / "adapter" / "adapter_model.safetensors")
    before = load_file(continued / "parent" / "adapter_model.safetensors")
    adapter = continued / "run" / "adapter"
    out = tmp_path / "merged"
    code = main(["merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out)])
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        whole = peft.PeftModel.from_pretrained(load(base), str(adapter)).eval()(input_ids=ids)
        merged = load(out)(input_ids=ids)

    assert trained.keys() == before.keys()
    assert not any(torch.equal(trained[name], before[name]) for name in trained)
    assert code == 0
    assert torch.allclose(whole.logits, merged.logits, atol=1e-5)


def test_another_parent_is_another_run(continued: Path, tmp_path: Path) -> None:
    """A resume after the adapter in `method.from` has changed is refused, with both digests."""
    shutil.copytree(continued, tmp_path / "all")
    run = tmp_path / "all" / "run"
    shutil.rmtree(run / "adapter")
    path = tmp_path / "all" / "parent" / "adapter_model.safetensors"
    tensors = {name: value * 2 for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"method\.from: was \S+, is \S+ \(this may never change"):
        run_job(JobOptions(run_dir=run), print)


def test_another_base_than_the_parents_is_refused(continued: Path, tmp_path: Path) -> None:
    """The adapter tells what its base hashes to, so a base of the same shape is seen through."""
    other = tiny.make_model(tmp_path / "other", seed=5)
    shutil.copytree(continued / "parent", tmp_path / "parent")

    with pytest.raises(ConfigError, match="was trained on another base"):
        rig(lay_out(other, tmp_path))


def test_an_adapter_of_another_size_is_refused(base: Path, tmp_path: Path) -> None:
    """The message has the tensor and both shapes; nothing is trained on what happens to fit."""
    wide = tiny.make_model(tmp_path / "wide", hidden=64)
    make_adapter(wide, tmp_path / "parent")

    with pytest.raises(ConfigError, match=r"it has \[4, 128\], the base needs \[4, 64\]"):
        rig(lay_out(base, tmp_path))


def test_every_rank_of_a_dylora_adapter_is_trained_further(base: Path, tmp_path: Path) -> None:
    """The start is the matrices of rank r, not the best rank that was cut out of them."""
    rows = tiny.make_rows(tmp_path / "train.jsonl", 20)
    config = tiny.make_config(base, rows, method={"kind": "qdylora"})
    first = rig(tiny.write_config(tmp_path / "first", config))
    first.train(until=2)
    (tmp_path / "parent").mkdir()
    first.context.method.choose({1: 0.5, 2: 0.1, 4: 0.3})  # type: ignore[attr-defined]
    first.context.method.save(tmp_path / "parent")
    second = rig(lay_out(base, tmp_path, kind="qdylora"))
    settings = json.loads((tmp_path / "parent" / "adapter_config.json").read_text())

    assert settings["r"] == 2
    assert outcome_tensors(second) == outcome_tensors(first)


HONEST: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
    "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "me/base",
    "megatron_core": "megatron.core", "qalora_group_size": 16, "init_lora_weights": True,
    "peft_version": "0.21.2", "layers_to_transform": None, "rank_pattern": {},
}  # fmt: skip


def foreign(place: Path, **settings: Any) -> Path:
    """Write an adapter as PEFT does, with other settings, and return its directory."""
    text = json.dumps(HONEST | settings)
    (place / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file({"a": torch.zeros(1)}, place / "adapter_model.safetensors")
    return place


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layers_to_transform", [0, 1]),
        ("exclude_modules", ["q_proj"]),
        ("kasa_config", {"beta": 1}),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("auto_mapping", {"parent_library": "os"}),
        ("peft_type", "VERA"),
        ("target_modules", ".*q_proj"),
        ("a_setting_of_a_later_peft", 1),
    ],
)
def test_what_would_be_dropped_on_the_way_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    """A setting of PEFT's that changes what an adapter computes, and is not trained here."""
    with pytest.raises(ConfigError, match=f"`{key}`"):
        read_parent(foreign(tmp_path, **{key: value}))


def test_an_adapter_of_pefts_with_its_usual_settings_is_taken(tmp_path: Path) -> None:
    """Settings that are set in every file of PEFT's change nothing; the default kind holds."""
    method = inherit(MethodTable.model_validate({"from": "x"}), read_parent(foreign(tmp_path)))

    assert (method.kind, method.r, method.alpha) == (MethodKind.QLORA, 4, 8)
    assert method.targets == ["q_proj", "v_proj"]


def test_given_values_that_contradict_are_named_with_both(tmp_path: Path) -> None:
    """Every one of them at once; what agrees may be given, and how the base is kept is free."""
    parent = read_parent(foreign(tmp_path))

    def given(**method: Any) -> MethodTable:
        return inherit(MethodTable.model_validate({"from": "x", **method}), parent)

    with pytest.raises(ConfigError) as caught:
        given(r=8, alpha=16, targets=["k_proj"], kind="dora")
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "method.r: 8 is given, and the adapter in `method.from` has 4",
        "method.alpha: 16 is given, and the adapter in `method.from` has 8",
        "method.targets: k_proj is given, and the adapter in `method.from` has q_proj, v_proj",
        "method.kind: dora is given, and the adapter in `method.from` is lora",
    ]
    assert given(r=4, targets=["q_proj", "v_proj"], kind="lora").kind is MethodKind.LORA
    assert given(kind="qlora", quant="fp4").quant == "fp4"


def test_all_linear_is_refused_where_the_parent_has_fewer_layers(
    base: Path, tmp_path: Path
) -> None:
    """What it means only the base tells; the message names the layers that are without."""
    make_adapter(base, tmp_path / "parent", target_modules=["q_proj", "v_proj"])

    with pytest.raises(ConfigError, match=r"has q_proj, v_proj, without down_proj, gate_proj"):
        rig(lay_out(base, tmp_path, targets="all-linear"))


class Payload:
    """What executes when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_a_pickled_parent_is_refused_and_not_opened(tmp_path: Path) -> None:
    """PEFT's older format can run code; the message says what to do about it."""
    marker = tmp_path / "executed"
    foreign(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Payload(marker)))

    with pytest.raises(ConfigError, match=r"is a pickle, which is never read"):
        read_parent(tmp_path)
    assert not marker.exists()


def test_coefficients_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """A NOLA adapter's matrices are not what is trained; exported, they are."""
    (tmp_path / "nola.json").write_text("{}")

    with pytest.raises(ConfigError, match="`qft export` makes a plain LoRA"):
        read_parent(tmp_path)


def test_a_run_without_a_parent_has_the_facts_that_it_had(base: Path, tmp_path: Path) -> None:
    """The key is in no facts of other runs, so that those of earlier versions go on."""
    rows = tiny.make_rows(tmp_path / "rows.jsonl", 3)
    config = TrainerConfig.model_validate(tiny.make_config(base, rows))
    inputs = data_facts(config, tmp_path)

    assert inputs.keys() == {"data.train", "data.eval"}
    assert "method.from" not in training_facts(config, inputs)


def test_the_card_names_the_parent_and_what_it_hashes_to(continued: Path) -> None:
    """A hub shows the adapter below its base; the line is absent for a run that began anew."""
    base = BaseName(name="me/base", on_hub=True)
    config = with_parent(load_config(continued / "run" / "config.json"), continued / "run")
    facts = {"parent": {"name": "me/style@v2", "sha256": "ab12"}}
    cards = [
        publish.model_card(one, build_report(place, facts), base=base, merged=False)
        for one, place in (
            (config, continued / "run"),
            (load_config(continued / "first" / "config.json"), continued / "first"),
        )
    ]

    assert "- goes on from the adapter `me/style@v2` (SHA-256 `ab12`)" in cards[0]
    assert "base_model_relation: adapter" in cards[0]
    assert "- qlora, rank 3, alpha 5" in cards[0]
    assert "goes on" not in cards[1]
    assert "trained whole" not in cards[0]
    assert "base_model_relation" not in cards[1]


def test_the_experts_of_a_parent_are_trained_further(tmp_path: Path) -> None:
    """PEFT's `target_parameters` come with the adapter, in four bits and beside the layers."""
    base = make_mixture(tmp_path / "model")
    rows = tiny.make_rows(tmp_path / "train.jsonl", 20)
    config = tiny.make_config(base, rows, method={"kind": "qlora", "dropout": 0.0})
    first = rig(tiny.write_config(tmp_path / "first", config))
    first.train(until=2)
    (tmp_path / "parent").mkdir()
    first.context.method.save(tmp_path / "parent")
    second = rig(lay_out(base, tmp_path, kind="qlora"))
    settings = json.loads((tmp_path / "parent" / "adapter_config.json").read_text())

    assert settings["target_parameters"]
    assert outcome_tensors(second) == outcome_tensors(first)
