"""What a base's config.json says of it is judged before anything is rented, with what to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from commands.runs.base_checks import base_faults, share_of
from commands.runs.base_shape import base_shape
from trainer import model as models
from trainer.adapters import quantise
from trainer.base_config import ENCODERS, base_problems
from trainer.config import PrecisionChoice, load_config
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.method_table import MethodTable

CPU, PRECISION = torch.device("cpu"), PrecisionChoice.FP32
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def problem(config: dict[str, Any], name: str = "owner/base", **method: Any) -> str:
    """Return what is wrong with a base of this config; empty if nothing is."""
    table = MethodTable.model_validate({"kind": "qlora", **method})
    return "\n".join(base_problems(config, table, name=name))


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),  # unsloth#2057
        # transformers#28193.
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq"),
        # Qwen3-8B-FP8 and DeepSeek-V3 (transformers#41516).
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8"),
        # gpt-oss.
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "hqq", "quant_config": {}}, "hqq"),
        ({"quant_method": "bitnet"}, "bitnet"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
    ],
)
def test_a_base_that_others_have_quantised_is_refused_by_its_kind(
    stored: dict[str, Any], word: str
) -> None:
    """The kind is named, whatever the method, and where the config has it."""
    flat = problem({**LLAMA, "quantization_config": stored})
    nested = problem({"model_type": "x", "text_config": {"quantization_config": stored}})
    plain = problem({**LLAMA, "quantization_config": stored}, kind="lora")

    assert f"quantised already ({word})" in flat
    assert flat == nested == plain


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/gemma-3-4b-it-unsloth-bnb-4bit", "unsloth/gemma-3-4b-it"),
        ("TheBloke/Mistral-7B-v0.1-AWQ", "TheBloke/Mistral-7B-v0.1"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("RedHatAI/gemma-3-4b-it-quantized.w4a16", None),
        ("openai/gpt-oss-20b", None),
    ],
)
def test_what_to_take_instead_is_named_where_the_name_tells(
    name: str, original: str | None
) -> None:
    """The name without its last part is the original's; without such a part, it is described."""
    words = problem({**LLAMA, "quantization_config": {"quant_method": "fp8"}}, name=name)

    if original is None:
        assert words.endswith(("made from", "`RedHatAI/gemma-3-4b-it-quantized`"))
    else:
        assert words.endswith(f"Take `{original}`")


@pytest.mark.parametrize(
    ("stored", "method", "fine"),
    [
        (NF4, {"kind": "qlora"}, True),
        (NF4, {"kind": "qlora", "quant": "nf4"}, True),
        (NF4, {"kind": "rslora", "quant": "nf4"}, True),
        (NF4, {"kind": "qlora", "quant": "int8"}, False),
        (NF4, {"kind": "qlora", "quant": "fp4"}, False),
        (NF4, {"kind": "lora"}, False),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"kind": "qlora"}, True),
        (INT8, {"kind": "qlora", "quant": "int8"}, True),
        (INT8, {"kind": "qlora"}, False),
    ],
)
def test_a_base_that_is_quantised_already_keeps_its_kind_by_name(
    stored: dict[str, Any], method: dict[str, Any], *, fine: bool
) -> None:
    """NF4 in the files is `quant: nf4` or a refusal that says so; 8 bits likewise."""
    found = problem({**LLAMA, "quantization_config": stored}, **method)

    assert (not found) == fine
    assert fine or "Use `kind: qlora, quant: " in found


def test_experts_in_packed_form_are_refused() -> None:
    """A mixture in bitsandbytes' 4 bits has its experts apart, and they cannot be joined."""
    config = {"model_type": "qwen3_moe", "num_experts": 128, "quantization_config": NF4}

    assert "the experts of this base are quantised already" in problem(config)


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_an_encoder_is_refused_by_its_config(kind: str) -> None:
    """It reads both ways; with `is_decoder` it was made to read one way, and is not refused."""
    assert f"a `{kind}` is an encoder" in problem({"model_type": kind})
    assert not problem({"model_type": kind, "is_decoder": True})


def test_encoders_are_what_transformers_calls_so() -> None:
    """Every name is an architecture of masked language models there, and none is a chat model's."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    older = {"qdqbert", "nezha", "lxmert", "splinter", "canine", "layoutlmv3"}
    assert {name for name in ENCODERS if name not in MASKED} <= older
    assert not ENCODERS & {"llama", "mistral", "qwen3", "gemma3", "gpt2", "phi", "falcon", "opt"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llada", "architectures": ["LLaDAModelLM"]},
        {"model_type": "Dream", "architectures": ["DreamModel"]},
        {"model_type": "diffusion_gemma"},
    ],
)
def test_a_diffusion_model_is_refused_by_its_config(config: dict[str, Any]) -> None:
    """LLaDA and Dream write in no order."""
    assert "writes by diffusion" in problem(config)


def test_a_plan_says_before_renting_what_the_trainer_would_refuse() -> None:
    """T5's share by formula is that of the trainer: 71 % of T5-3B, and `partly_quantised` helps."""
    t5_3b = {
        "model_type": "t5", "is_encoder_decoder": True, "vocab_size": 32128, "d_model": 1024,
        "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32,
    }  # fmt: skip
    strict = MethodTable.model_validate({"kind": "qlora"})
    lenient = MethodTable.model_validate({"kind": "qlora", "partly_quantised": True})
    (refusal,) = base_faults(t5_3b, strict, name="google-t5/t5-3b")

    assert "only 71.4 % of the weights" in refusal
    assert "805,306,368 of 2,818,572,288 would stay" in refusal
    assert base_faults(t5_3b, lenient, name="google-t5/t5-3b") == []
    assert base_faults(LLAMA, strict, name="base") == []


# Qwen3-30B-A3B's published config.json: huggingface.co/Qwen/Qwen3-30B-A3B.
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 40960,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"kind": "qlora"}, ""),
        ({"kind": "lora"}, ""),
        ({"kind": "qlora", "dropout": 0.1}, "method.dropout: PEFT has no dropout in front of"),
        ({"kind": "qlora", "dropout": 0.1, "targets": ["q_proj"]}, ""),
        ({"kind": "qlora", "dropout": 0.1, "targets": ["gate_up_proj"]}, "method.dropout"),
        ({"kind": "qdora"}, "method.kind: qdora cannot adapt the experts of a mixture"),
        ({"kind": "dora"}, "method.kind: dora cannot adapt the experts of a mixture"),
        ({"kind": "nola"}, "method.kind: nola cannot adapt the experts of a mixture"),
        ({"kind": "qlora", "quant": "int8"}, "method.quant: only 3.0 % of the weights"),
        ({"kind": "qlora", "quant": "int8", "partly_quantised": True}, ""),
    ],
)
def test_a_plan_says_what_a_mixture_cannot_be_trained_by(
    method: dict[str, Any], reason: str
) -> None:
    """Qwen3-30B-A3B: by which method its experts have no form, and that 8 bits leave them out."""
    found = base_faults(QWEN3_30B_A3B, MethodTable.model_validate(method), name="base")

    assert len(found) == bool(reason)
    assert not found or found[0].startswith(reason)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
def test_a_plan_counts_the_share_of_a_mixture_as_the_trainer_does(
    tmp_path: Path, family: str, quant: str
) -> None:
    """By formula and on the model: the same weights of matrices quantised; routers are small."""
    from support.mixtures import config_of, make_mixture

    make_mixture(tmp_path / "model", family)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    table = {"kind": "qlora", "quant": quant, "targets": ["q_proj"]}
    run = tiny.make_run(tmp_path, rows=2, method=table)
    method = load_config(run / "config.json").method
    source = models.find_source(load_config(run / "config.json").model, run)
    arithmetic = Precision(compute=PRECISION, autocast=False, loss_scaling=False, reason="")
    loaded = models.load_base(source, method, precision=arithmetic, device=CPU)
    found, formula = quantise.measure(loaded, method.storage), share_of(base_shape(config), method)

    assert config_of(family).model_type == config["model_type"]
    assert formula.quantised_matrices == found.quantised_matrices
    assert formula.matrices == pytest.approx(found.matrices, rel=0.01)


def test_a_base_in_nf4_trains_in_its_own_four_bits(tmp_path: Path) -> None:
    """Its weights are used as they are, in the arithmetic of this device, and the share is said."""
    place = quantised_llama(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    messages: list[str] = []
    run = tiny.make_run(tmp_path, rows=4, method={"kind": "qlora"}, train={"steps": 1})
    run_job(JobOptions(run_dir=run), messages.append)
    source = models.Source(name=str(place), revision=None, trust_remote_code=False)
    arithmetic = Precision(compute=PRECISION, autocast=False, loss_scaling=False, reason="")
    method = MethodTable.model_validate({"kind": "qlora"})
    base = models.load_base(source, method, precision=arithmetic, device=CPU)
    layers = [layer for _, layer in models.four_bit_layers(base)]

    assert any("100 % of the weights in its layers' matrices" in line for line in messages)
    assert len(layers) == 14
    assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert {layer.weight.quant_state.quant_type for layer in layers} == {"nf4"}


@pytest.mark.parametrize("method", [{"kind": "qlora", "quant": "int8"}, {"kind": "lora"}])
def test_a_base_in_nf4_is_nothing_else(tmp_path: Path, method: dict[str, Any]) -> None:
    """The trainer refuses another storage before it reads a weight, with what would fit."""
    quantised_llama(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    run = tiny.make_run(tmp_path, rows=4, method=method, train={"steps": 1})

    with pytest.raises(ConfigError, match=r"already, to nf4.* Use `kind: qlora, quant: nf4`"):
        run_job(JobOptions(run_dir=run), lambda _text: None)


def test_a_base_in_eight_bits_trains_in_them(tmp_path: Path) -> None:
    """`quant: int8` on a base that is in 8 bits already."""
    quantised_llama(tmp_path, load_in_8bit=True)
    table = {"kind": "qlora", "quant": "int8"}
    run = tiny.make_run(tmp_path, rows=4, method=table, train={"steps": 1})
    run_job(JobOptions(run_dir=run), lambda _text: None)
    record = json.loads((run / "adapter" / "qft.json").read_text(encoding="utf-8"))["quantised"]

    assert (record["storage"], record["of_matrices"]) == ("int8", 1.0)


def quantised_llama(place: Path, **settings: Any) -> Path:
    """Write a tiny LLaMA as it is saved after it was loaded in few bits; return its directory."""
    import transformers

    tiny.make_model(place / "plain")
    config = transformers.BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(place / "plain"), quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(str(place / "model"))
    tiny.make_tokenizer().save_pretrained(str(place / "model"))
    return place / "model"
