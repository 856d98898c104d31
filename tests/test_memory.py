"""The memory forecast is near what others measured, and moves the right way with every choice."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_points import MODELS
from support.tiny import make_config

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import Linear, UnknownShapeError, read_shape
from trainer.estimate.gpus import GPUS
from trainer.estimate.loops import OURS
from trainer.estimate.memory import dora_bytes, estimate, largest_micro_batch
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import step_seconds
from trainer.estimate.training import estimate_training
from trainer.estimate.weights import adapter_parameters, base_bytes
from trainer.method_table import OptimizerKind, Quant

T5_3B = {
    "model_type": "t5", "d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 32, "vocab_size": 32128,
}  # fmt: skip
PHI_15 = MODELS["phi-1.5"]


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (MODELS["llama-2-7b"], 6738), (MODELS["llama-3-8b"], 8030), (PHI_15, 1418),
        (MODELS["falcon-7b"], 6922), (MODELS["gemma-2b"], 2506), (T5_3B, 2852),
        (MODELS["llama-2-13b"], 13016), (MODELS["qwen-7b"], 7721),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_models(config: dict[str, Any], millions: int) -> None:
    """The sizes read from a config add up to the published number of parameters."""
    assert round(read_shape(config).parameters / 1e6) == millions


def test_small_models_have_exactly_the_parameters_transformers_gives_them() -> None:
    """For each family the count equals that of the model that transformers builds, to the last."""
    import torch
    import transformers as tf

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    configs = [
        tf.LlamaConfig(**small, intermediate_size=48, num_key_value_heads=2),
        tf.Qwen2Config(**small, intermediate_size=48, num_key_value_heads=2),
        tf.PhiConfig(**small, intermediate_size=48),
        tf.FalconConfig(**small),
        tf.GPTNeoXConfig(**small, intermediate_size=48),
        tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16),
        tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64),
        tf.GemmaConfig(**small, intermediate_size=48, head_dim=16, num_key_value_heads=1),
    ]
    for config in configs:
        family = tf.AutoModelForSeq2SeqLM if config.model_type == "t5" else tf.AutoModelForCausalLM
        with torch.device("meta"):
            model = family.from_config(config)
        counted = read_shape(config.to_dict()).parameters

        # Norms have biases in some families: a few numbers per layer, no more.
        assert counted == pytest.approx(model.num_parameters(), rel=0.02), config.model_type


# PEFT 0.21 asks transformers 5.23 by a name that the latter is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_is_counted_as_peft_makes_it(tmp_path: Path) -> None:
    """Rank times columns plus rows of every adapted layer is the number PEFT trains.

    For DoRA a length per row comes on top.
    """
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        intermediate_size=48, num_key_value_heads=2,
    )  # fmt: skip
    for targets, dora in itertools.product((None, ("q_proj", "down_proj")), (False, True)):
        model = LlamaForCausalLM(config)
        wanted = "all-linear" if targets is None else list(targets)
        adapted = peft.get_peft_model(
            model,
            peft.LoraConfig(r=4, target_modules=wanted, task_type="CAUSAL_LM", use_dora=dora),
        )
        work = TrainingSetup(tokens=8, r=4, targets=targets, dora=dora)

        assert adapter_parameters(read_shape(config.to_dict()), work) == sum(
            parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
        )


def test_the_footprint_of_t5_3b_is_the_published_one() -> None:
    """11.4 GB in float32; 4.29 GB in 4 bits beside float16, because `wo` stays in float32."""
    shape = read_shape(T5_3B)
    fp32 = TrainingSetup(tokens=1, quant=Quant.NONE, precision=PrecisionChoice.FP32)
    nf4 = TrainingSetup(tokens=1, precision=PrecisionChoice.FP16)
    bf16 = replace(nf4, precision=PrecisionChoice.BF16)

    assert base_bytes(shape, fp32) / 1e9 == pytest.approx(11.406, abs=0.001)
    # The published figure leaves out the scales, 0.03 GB.
    assert base_bytes(shape, nf4) / 1e9 == pytest.approx(4.293, abs=0.04)
    assert base_bytes(shape, bf16) / 1e9 == pytest.approx(2.68, abs=0.04)


def test_the_phi_15_experiment_fits_a_t4_and_a_13b_model_without_quantisation_does_not() -> None:
    """What was published to run on 16 GB is foretold to fit, what cannot, not to."""
    t4 = GPUS["T4"].memory_bytes
    phi = TrainingSetup(tokens=1024, r=8, dropout=True)
    big = TrainingSetup(tokens=512, quant=Quant.NONE)

    assert (largest_micro_batch(PHI_15, phi, memory_bytes=t4, batch_size=8) or 0) >= 1
    assert largest_micro_batch(MODELS["llama-2-13b"], big, memory_bytes=t4, batch_size=8) is None


def test_llama_7b_in_4_bits_without_checkpointing_fits_a_t4() -> None:
    """A published fit test: batch 1 of 512 tokens, AdamW, on 16 GB."""
    work = TrainingSetup(tokens=512, checkpointing=False, precision=PrecisionChoice.BF16)

    assert estimate(MODELS["llama-2-7b"], work).reserved < GPUS["T4"].memory_bytes


@pytest.mark.parametrize(
    "cheaper",
    [
        {"micro_batch": 1}, {"tokens": 256}, {"quant": Quant.NF4}, {"r": 2},
        {"optimizer": OptimizerKind.ADAMW8BIT}, {"checkpointing": True}, {"dropout": False},
        {"targets": ("q_proj",)}, {"precision": PrecisionChoice.FP16}, {"loss_tokens": 4},
        {"dora": False}, {"loop": OURS},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_each_saving_saves(cheaper: dict[str, Any]) -> None:
    """Changing one choice to its thriftier value lowers the foretold peak."""
    dear = TrainingSetup(
        tokens=1024, micro_batch=4, quant=Quant.NONE, r=64, checkpointing=False, dropout=True,
        precision=PrecisionChoice.FP32, dora=True, loop=replace(OURS, eager=True),
    )  # fmt: skip

    assert estimate(PHI_15, replace(dear, **cheaper)).reserved < estimate(PHI_15, dear).reserved


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    tokens=st.integers(1, 4096),
    micro_batch=st.integers(1, 8),
    r=st.integers(1, 128),
    checkpointing=st.booleans(),
    quant=st.sampled_from([Quant.NF4, Quant.INT8, Quant.NONE]),
    precision=st.sampled_from(list(PrecisionChoice)[1:]),
    loss_tokens=st.integers(1, 4096),
)
def test_more_of_anything_never_needs_less(name: str, **choices: Any) -> None:
    """One token, row, rank, layer or learnt token more, or no checkpointing: never less memory."""
    work = TrainingSetup(**choices)
    shape = read_shape(MODELS[name])
    deeper = replace(shape, blocks=tuple(replace(one, count=one.count + 1) for one in shape.blocks))
    need = estimate(shape, work).reserved

    assert estimate(deeper, work).reserved >= need
    assert estimate(shape, replace(work, checkpointing=True)).reserved <= need * 1.0001
    for key in ("tokens", "micro_batch", "r", "loss_tokens"):
        more = replace(work, **{key: choices[key] + 1})
        assert estimate(shape, more).reserved >= need, key


def test_nola_has_coefficients_with_moments_and_matrices_without() -> None:
    """What NOLA saves of LoRA's need is the moments, but for those of its few coefficients."""
    lora = TrainingSetup(tokens=64, r=64)
    nola = replace(lora, bases=256)
    shape = read_shape(PHI_15)
    matrices, layers = adapter_parameters(shape, lora), 24 * 6
    small, thrifty = (
        replace(nola, optimizer=kind) for kind in (OptimizerKind.ADAMW, OptimizerKind.ADAMW8BIT)
    )

    assert adapter_parameters(shape, nola) == layers * 2 * 256
    assert estimate(PHI_15, nola).adapter == (matrices + layers * 512) * 8
    assert estimate(PHI_15, nola).optimizer == layers * 512 * 8
    assert estimate(PHI_15, thrifty).optimizer == estimate(PHI_15, small).optimizer
    assert estimate(PHI_15, replace(thrifty, bases=8192)).optimizer < layers * 2 * 8192 * 3


# As above, for PEFT asks for checkpointing wherever it is put on a model.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("columns", "rows"), [(256, 128), (128, 512)])
def test_dora_needs_what_peft_allocates(columns: int, rows: int) -> None:
    """The foretold bytes of one layer are those of a pass through it, over what LoRA takes."""
    import torch

    peaks = [
        one_pass(torch.nn.Linear(columns, rows, bias=False), dora=dora) for dora in (False, True)
    ]
    work = TrainingSetup(tokens=1, r=4, dora=True, quant=Quant.NONE, precision=PrecisionChoice.FP32)
    foretold = dora_bytes(Linear(name="up", columns=columns, rows=rows), work)

    assert peaks[1] - peaks[0] == pytest.approx(foretold, rel=0.03)


def one_pass(linear: Any, *, dora: bool) -> int:
    """Return the most bytes of tensors that were alive at once in a pass of three tokens."""
    import peft
    import torch
    from support.allocations import Allocations

    model = peft.get_peft_model(
        torch.nn.Sequential(linear), peft.LoraConfig(r=4, target_modules=["0"], use_dora=dora)
    )
    seen = Allocations()
    with seen:
        model(torch.zeros(3, linear.in_features))
    return seen.peak_bytes


def test_double_quantisation_saves_its_third_of_a_bit() -> None:
    """4.127 bits a weight instead of 4.5."""
    shape = read_shape(PHI_15)
    plain = base_bytes(shape, TrainingSetup(tokens=1, double_quant=False))
    double = base_bytes(shape, TrainingSetup(tokens=1, double_quant=True))

    assert (plain - double) / shape.linear_parameters * 8 == pytest.approx(4.5 - 4.127, abs=0.001)


def test_transposed_layers_are_foretold_in_four_bits_too() -> None:
    """GPT-2's layers are quantised like others (a test of merging counts them)."""
    shape = read_shape({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257})
    saved = base_bytes(shape, TrainingSetup(tokens=1, quant=Quant.NONE)) - base_bytes(
        shape, TrainingSetup(tokens=1)
    )

    assert saved / shape.linear_parameters == pytest.approx(2 - 4.127 / 8, abs=0.001)


def test_the_micro_batch_is_the_largest_that_fits() -> None:
    """One more sequence would not fit, and the batch size is never exceeded."""
    work = TrainingSetup(tokens=1024)
    memory = GPUS["T4"].memory_bytes
    found = largest_micro_batch(PHI_15, work, memory_bytes=memory, batch_size=1000)

    assert found is not None
    assert estimate(PHI_15, replace(work, micro_batch=found)).need.high <= memory
    assert estimate(PHI_15, replace(work, micro_batch=found + 1)).need.high > memory
    assert largest_micro_batch(PHI_15, work, memory_bytes=memory, batch_size=2) == 2


def test_the_phi_15_run_takes_hours_as_published() -> None:
    """1000 updates of 8 comments of at most 1024 tokens took about 7 hours on a T4."""
    short = step_seconds(PHI_15, TrainingSetup(tokens=200), gpu=GPUS["T4"], batch_size=8)
    long = step_seconds(PHI_15, TrainingSetup(tokens=1024), gpu=GPUS["T4"], batch_size=8)

    assert short * 1000 / 3600 < 7 < long * 1000 / 3600 * GPUS["T4"].factor


def test_a_plan_is_plain_json_with_everything_the_laptop_shows(tmp_path: Path) -> None:
    """Memory, micro-batch, steps and hours come from config, model and lengths."""
    config = TrainerConfig.model_validate(
        make_config(
            tmp_path, tmp_path, method={"kind": "qlora"}, train={"steps": None, "epochs": 2}
        )
    )
    plan = estimate_training(config, PHI_15, gpu=GPUS["T4"], lengths=[30] * 40, loss_tokens=3)

    assert json.loads(json.dumps(plan)) == plan
    assert (plan["fits"], plan["micro_batch"], plan["steps"], plan["tokens"]) == (True, 4, 20, 30)
    assert plan["hours"] == pytest.approx(20 * plan["step_seconds"] / 3600)


def test_an_unknown_architecture_is_reported() -> None:
    """A config of a kind that is not known is an error that names the kind."""
    with pytest.raises(UnknownShapeError, match="a `mamba` model is of an architecture that is"):
        read_shape({"model_type": "mamba", "hidden_size": 8})


def test_the_estimate_needs_no_torch() -> None:
    """The laptop plans without the trainer's libraries: importing loads none of them."""
    code = (
        "import sys, trainer.estimate.memory; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
