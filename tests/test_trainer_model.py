"""The base is frozen, quantised as asked and safe to evaluate; the adapter float32 and seeded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.models import gpt2
from support.rig import outcome_tensors, rig

from trainer import model as models
from trainer.config import ModelTable, PrecisionChoice, TrainTable
from trainer.data.examples import collate
from trainer.device.precision import choose_precision
from trainer.errors import ConfigError
from trainer.method_table import MethodTable

QLORA = {"kind": "qlora", "quant": "nf4", "dropout": 0.0}
ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_evaluate_then_train_equals_train(tmp_path: Path) -> None:
    """A 4-bit model that was evaluated first trains to the same bits as one that was not."""
    plain = rig(tiny.make_run(tmp_path / "a", rows=20, method=QLORA))
    plain.train(until=4)
    evaluated = rig(tiny.make_run(tmp_path / "b", rows=20, method=QLORA))
    inputs = collate(evaluated.context.examples[:4], 3)
    evaluated.context.model.eval()
    with torch.no_grad():
        evaluated.context.model(**inputs)
    evaluated.train(until=4)

    assert tiny.losses(plain.run_dir) == tiny.losses(evaluated.run_dir)
    assert outcome_tensors(plain) == outcome_tensors(evaluated)


def test_no_four_bit_layer_may_repack_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that claims AVX512-BF16 every 4-bit layer is switched off, and forward asks that."""
    import bitsandbytes.nn.modules as theirs

    monkeypatch.setattr(theirs, "has_avx512bf16", lambda: True)
    assert theirs.Linear4bit(8, 8).support_avx512bf16_for_cpu is True  # the switch exists

    def repack(*_arguments: Any) -> Any:
        raise AssertionError("a layer repacked its weights")

    monkeypatch.setattr(theirs, "_convert_weight_packed_for_cpu", repack)
    made = rig(tiny.make_run(tmp_path, rows=8, method=QLORA))
    layers = list(models.four_bit_layers(made.context.model))
    made.context.model.eval()
    with torch.no_grad():
        made.context.model(**collate(made.context.examples[:4], 3))

    assert len(layers) == 14
    assert {layer.support_avx512bf16_for_cpu for _, layer in layers} == {False}


def test_four_bits_mean_four_bits(tmp_path: Path) -> None:
    """Under qlora every linear layer but the head is stored in 4 bits with quantised scales."""
    made = rig(tiny.make_run(tmp_path, rows=8, method=QLORA))
    layers = dict(models.four_bit_layers(made.context.model))
    weights = [layer.weight for layer in layers.values()]

    assert {w.quant_state.quant_type for w in weights} == {"nf4"}
    assert {w.quant_state.nested for w in weights} == {True}
    assert {w.dtype for w in weights} == {torch.uint8}
    assert not [name for name in layers if "lm_head" in name]


def test_only_the_adapter_is_trained_and_in_float32(tmp_path: Path) -> None:
    """What is trained is LoRA and float32; everything else is frozen, and not upcast."""
    made = rig(tiny.make_run(tmp_path, rows=8, method=QLORA))
    trained = models.trainable(made.context.model)

    assert all("lora_" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert len(trained) == 2 * 14


def test_the_first_weights_depend_on_the_seed_only(tmp_path: Path) -> None:
    """Two starts with one seed begin alike, another seed begins elsewhere."""
    first, second, other = (
        outcome_tensors(rig(tiny.make_run(tmp_path / str(at), rows=8, train={"seed": seed})))
        for at, seed in enumerate((3, 3, 4))
    )

    assert first == second
    assert first != other


def test_unknown_targets_list_what_there_is(tmp_path: Path) -> None:
    """A target that the model does not have is refused with the names of those it has."""
    run = tiny.make_run(tmp_path, rows=8, method={"targets": ["q_proj", "query_key_value"]})

    with pytest.raises(ConfigError, match="no linear layer called query_key_value") as caught:
        rig(run)
    assert ", ".join(ALL) in str(caught.value)


def test_all_linear_means_every_linear_layer_but_the_head(tmp_path: Path) -> None:
    """Target discovery finds all projections and leaves the head alone."""
    model = tiny.make_model(tmp_path / "model")
    source = models.find_source(ModelTable(id=str(model)), tmp_path)
    precision = models.device_precision(TrainTable(), device=torch.device("cpu"), seq2seq=False)
    base = models.load_base(
        source,
        MethodTable.model_validate({"kind": "lora"}),
        precision=precision,
        device=torch.device("cpu"),
    )

    assert models.find_targets(base, MethodTable()) == ALL


@pytest.mark.parametrize("name", ["../nowhere", "/nowhere", "~/nowhere-at-all"])
def test_a_missing_directory_is_not_looked_up_on_a_hub(tmp_path: Path, name: str) -> None:
    """What is written like a path must be a directory."""
    with pytest.raises(ConfigError, match="there is no directory"):
        models.find_source(ModelTable(id=name), tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({}, "Error while deserializing"),
        ({"hidden_size": 64}, "cannot be loaded"),
        ({"num_hidden_layers": 3}, "the files lack 9 weights of a LlamaForCausalLM, such as model"),
        ({"_attn_implementation": "flash_attention_2"}, "cannot be loaded"),
    ],
)
def test_a_damaged_base_is_refused_and_never_filled_up_with_random_weights(
    tmp_path: Path, damage: dict[str, Any], words: str
) -> None:
    """Torn files, other sizes, missing weights, missing packages: all end with the reason."""
    directory = tiny.make_model(tmp_path / "model")
    if damage:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    else:
        (directory / "model.safetensors").write_bytes(b"torn")
    source = models.find_source(ModelTable(id=str(directory)), tmp_path)
    precision = choose_precision(PrecisionChoice.AUTO, device="cpu", capability=None, seq2seq=False)

    with pytest.raises(ConfigError, match=words):
        models.load_base(
            source,
            MethodTable.model_validate({"kind": "lora"}),
            precision=precision,
            device=torch.device("cpu"),
        )


@pytest.mark.parametrize("offline", [False, True])
def test_a_silent_hub_is_no_error_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    """A hub that does not answer may be asked again, unless the network is switched off."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def silent(*_arguments: object, **_named: object) -> None:
        raise OSError("We could not connect") from LocalEntryNotFoundError("no answer")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    source = models.find_source(ModelTable(id="some/base"), tmp_path)

    with pytest.raises(ConfigError if offline else ConnectionError, match="could not connect"):
        models.load_config(source)


def test_a_directory_that_is_no_model_is_refused_readably(tmp_path: Path) -> None:
    """An empty directory as a base gives one line about it, not a library's traceback."""
    source = models.find_source(ModelTable(id=str(tmp_path)), tmp_path)

    with pytest.raises(ConfigError, match="cannot be loaded"):
        models.load_config(source)


AUTO, FP32, BF16, FP16 = PrecisionChoice


@pytest.mark.parametrize(
    ("capability", "seq2seq", "compute", "autocast", "scaling"),
    [
        ((7, 5), False, FP16, True, True),  # T4
        ((7, 5), True, FP16, False, True),  # T5 on a T4
        ((7, 0), False, FP16, True, True),  # V100
        ((8, 0), False, BF16, True, False),  # A100
        ((8, 6), True, BF16, True, False),  # A10
        ((9, 0), False, BF16, True, False),  # H100
    ],
)
def test_precision_follows_the_compute_capability(
    capability: tuple[int, int],
    seq2seq: bool,  # noqa: FBT001 - a column of the table
    compute: PrecisionChoice,
    autocast: bool,  # noqa: FBT001 - likewise
    scaling: bool,  # noqa: FBT001 - likewise
) -> None:
    """Turing and older get float16 with loss scaling, Ampere and newer bfloat16."""
    found = choose_precision(AUTO, device="cuda", capability=capability, seq2seq=seq2seq)

    assert (found.compute, found.autocast, found.loss_scaling) == (compute, autocast, scaling)
    assert found.mixed == (str(compute) if autocast else "no")


def test_precision_that_cannot_work_is_refused() -> None:
    """bfloat16 on a T4 and float16 on a CPU are refused with what to use instead."""
    with pytest.raises(ConfigError, match="use `auto`, which is fp16"):
        choose_precision(BF16, device="cuda", capability=(7, 5), seq2seq=False)
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision(FP16, device="cpu", capability=None, seq2seq=False)


def test_a_cpu_computes_in_float32_by_default() -> None:
    """A CPU gets float32, and bfloat16 only if the user wants it."""
    auto = choose_precision(AUTO, device="cpu", capability=None, seq2seq=False)
    requests = choose_precision(BF16, device="cpu", capability=None, seq2seq=False)

    assert (auto.compute, auto.autocast) == (FP32, False)
    assert (requests.compute, requests.autocast) == (BF16, True)


def test_a_row_longer_than_the_learnt_places_is_refused(tmp_path: Path) -> None:
    """GPT-2 with 64 places takes 64 tokens and no more; a model that computes places takes any."""
    learnt = gpt2(tmp_path / "gpt2")
    tiny.make_model(tmp_path / "llama")
    computed = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "llama"))

    models.require_places(learnt, 64)
    models.require_places(computed, 9999)
    with pytest.raises(
        ConfigError, match=r"train.max_length: a row has 65 tokens, .* set it to 64"
    ):
        models.require_places(learnt, 65)
