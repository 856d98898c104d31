"""Layers that are trained whole go through resume, inference, merge and PEFT like all the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from support import tiny
from support.adapters import fresh_base, logits, make, plain_peft
from support.models import load, make_adapter
from support.rig import Rig, outcome, outcome_tensors, restored, rig

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters.dylora import DyLora
from trainer.config import TrainerConfig
from trainer.device.shapes import read_shape
from trainer.errors import ConfigError
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters
from trainer.method_table import MethodTable
from trainer.results.export import export
from trainer.rundir.fingerprint import flatten_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("tiny", {"kind": "qlora", "save": ["embed_tokens", "lm_head"]}),
    "untied": ("llama", {"kind": "qlora", "save": ["embed_tokens", "lm_head", "model.norm"]}),
    "head": ("falcon", {"kind": "lora", "save": ["word_embeddings"]}),
    "half": ("llama", {"kind": "lora", "save": ["embed_tokens", "lm_head", "norm"]}),
}


@pytest.fixture(autouse=True)
def as_a_new_process() -> Iterator[None]:
    """Begin and leave without accelerate's settings of the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def lay_out(place: Path, architecture: str, **method: Any) -> Path:
    """Write a run directory around a random model of this architecture, and return it."""
    place.mkdir(parents=True, exist_ok=True)
    base = place / "model"
    if not base.exists():
        tiny.make_model(base) if architecture == "tiny" else make(architecture, base)
    config = tiny.make_config(base, tiny.make_rows(place / "rows.jsonl", 20), method=method)
    if place.name == "half":
        config["train"]["precision"] = "bf16"
    return tiny.write_config(place / f"run-{len(list(place.iterdir()))}", config)


def saved(made: Rig, directory: Path) -> Path:
    """Write the adapter as a job does at its end."""
    directory.mkdir()
    made.context.method.save(directory)
    return directory


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_layers_are_trained_kept_and_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    """Stopped and resumed, the bits are the same; loaded again, so is every logit."""
    architecture, method = WHOLE[name]
    made = rig(lay_out(tmp_path / name, architecture, **method))
    before = {key: value.clone() for key, value in outcome_values(made).items()}
    made.train(until=4)
    stopped = rig(lay_out(tmp_path / name, architecture, **method))
    stopped.train(until=2)
    stopped.save()
    resumed = restored(stopped.run_dir)
    resumed.train(until=4)
    adapter = saved(made, tmp_path / "adapter")
    whole = {key: value for key, value in load_file(adapter / "adapter_model.safetensors").items()
             if "lora_" not in key}  # fmt: skip
    found = logits(made.context.model, made)
    again = logits(models.load_adapter(fresh_base(made), adapter), made)
    pefts = logits(plain_peft(made, adapter), made)

    assert outcome(resumed) == outcome(made)
    assert {value.dtype for value in (*made.state.parameters.values(), *whole.values())} == {
        torch.float32
    }
    moved = [key for key, value in outcome_values(made).items() if not value.equal(before[key])]
    assert sorted(moved) == sorted(before)
    assert torch.equal(again, found)
    # PEFT alone holds the layers in the type of the base, which has 8 bits of fraction here.
    assert torch.allclose(pefts, found, atol=0.02 if name == "half" else 0)


def outcome_values(made: Rig) -> dict[str, torch.Tensor]:
    """Return the layers that are trained whole, by the names of their parameters."""
    return {k: v.detach() for k, v in made.state.parameters.items() if "lora_" not in k}


@pytest.mark.parametrize("architecture", ["tiny", "llama", "falcon"])
def test_a_merge_has_the_trained_layers(architecture: str, tmp_path: Path) -> None:
    """Also where embedding and head are one matrix, which only the base holds once."""
    save = ["lm_head"] if architecture == "falcon" else ["embed_tokens", "lm_head"]
    made = rig(lay_out(tmp_path, architecture, kind="lora", save=save))
    made.train(until=3)
    adapter, out = saved(made, tmp_path / "adapter"), tmp_path / "merged"
    places = ["--base", str(tmp_path / "model"), "--adapter", str(adapter), "--out", str(out)]

    assert main(["merge", *places]) == 0
    merged, plain = logits(load(out), made), logits(load(tmp_path / "model"), made)
    assert torch.allclose(merged, logits(made.context.model, made), atol=1e-5)
    assert (merged - plain).abs().max() > 0.1


def test_peft_without_tying_on_a_tied_base_is_not_merged(tmp_path: Path) -> None:
    """Its head went on with the old matrix, and one cannot be both (peft#2777, peft#2018)."""
    base = tiny.make_model(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    places = ["--base", str(base), "--adapter", str(tmp_path / "adapter")]

    assert main(["merge", *places, "--out", str(tmp_path / "merged")]) == 78
    assert not (tmp_path / "merged").exists()


def test_every_rank_of_dylora_goes_with_the_whole_layers(tmp_path: Path) -> None:
    """Only A and B are cut by rank; an export of any rank loads with the same embedding."""
    made = rig(lay_out(tmp_path, "tiny", kind="dylora", save=["embed_tokens"]))
    made.train(until=3)
    method = made.context.method
    assert isinstance(method, DyLora)
    method.choose({1: 0.5, 2: 0.1, 4: 0.3})
    adapter = saved(made, tmp_path / "adapter")
    found = logits(made.context.model, made)
    export(adapter, tmp_path / "one", rank=1)
    one = load_file(tmp_path / "one" / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.weight"

    assert torch.allclose(logits(plain_peft(made, adapter), made), found, atol=1e-5)
    assert torch.equal(one[key], load_file(adapter / "ranks.safetensors")[key])
    assert logits(plain_peft(made, tmp_path / "one"), made).isfinite().all()


def test_a_training_goes_on_with_the_whole_layers_of_its_parent(tmp_path: Path) -> None:
    """`save` is the adapter's, like its rank; given otherwise it is refused with both."""
    first = rig(lay_out(tmp_path, "tiny", kind="qlora", save=["embed_tokens"]))
    first.train(until=2)
    saved(first, tmp_path / "parent")
    second = lay_out(tmp_path, "tiny")
    config = (second / "config.json").read_text()
    method = '{"from": "../parent", "kind": "qlora"}'
    old = config[config.index('"method": {') + 10 : config.index("}", config.index('"method"')) + 1]
    (second / "config.json").write_text(config.replace(old, method))

    assert outcome_tensors(rig(second)) == outcome_tensors(first)
    other = method.replace("}", ', "save": ["norm"]}')
    (second / "config.json").write_text(config.replace(old, other))
    with pytest.raises(ConfigError, match=r"save: norm is given, .* has lm_head, model\.embed"):
        rig(second)


@pytest.mark.parametrize(
    ("architecture", "save", "words"),
    [
        ("tiny", "embed", "no layer called embed; it has embed_tokens, input_layernorm, lm_head"),
        ("tiny", "mlp", "no layer called mlp"),
        ("tiny", "q_proj", "q_proj has an adapter already"),
        ("t5", "shared", "shared shares its weights with encoder.embed_tokens"),
    ],
)
def test_a_name_that_cannot_be_trained_whole_is_refused(
    architecture: str, save: str, words: str, tmp_path: Path
) -> None:
    """The message has the reason, and the layers that there are."""
    with pytest.raises(ConfigError, match=words):
        rig(lay_out(tmp_path, architecture, kind="qlora", save=[save]))


def test_a_quantised_layer_is_refused(tmp_path: Path) -> None:
    """What is packed in four bits has no gradient; the head is never quantised."""
    run = lay_out(tmp_path, "tiny", kind="qlora", targets=["q_proj"], save=["down_proj"])

    with pytest.raises(ConfigError, match=r"method\.save: down_proj is quantised"):
        rig(run)


def test_coefficients_do_not_go_with_whole_layers() -> None:
    """Refused before renting: NOLA's file would lack them."""
    with pytest.raises(ValueError, match="`save` does not go with `kind: nola`"):
        MethodTable(kind="nola", save=("lm_head",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("tied", "matrices"), [(True, 1), (False, 2)])
def test_the_plan_counts_the_whole_layers(tied: bool, matrices: int) -> None:  # noqa: FBT001
    """A tied base has one matrix under both names, and trains it once."""
    shape = read_shape(
        {
            "model_type": "llama", "hidden_size": 64, "vocab_size": 1000, "num_hidden_layers": 2,
            "intermediate_size": 128, "num_attention_heads": 4, "tie_word_embeddings": tied,
        }
    )  # fmt: skip
    method = MethodTable(save=("model.embed_tokens", "lm_head"))
    work = TrainingSetup(tokens=32)
    more = TrainingSetup(tokens=32, saved=method.saved_matrices)

    added = adapter_parameters(shape, more) - adapter_parameters(shape, work)
    assert added == matrices * 64 * 1000
    assert method.saved_matrices == 2


def test_a_config_of_before_has_the_same_facts() -> None:
    """Without whole layers the key is in no facts, so that earlier runs go on."""
    config = TrainerConfig.model_validate(tiny.make_config(Path("model"), Path("rows.jsonl")))

    assert "method.save" not in flatten_config(config)
