"""A counted step takes what torch's allocator reports of a real one; odd bases are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.counted_steps import BASES, REQUESTS, T4, counted
from support.measured_step import peak_bytes, static_bytes
from support.rig import rig

from trainer.errors import ConfigError
from trainer.step_memory.command import count, read_request
from trainer.step_memory.cuda import like_cuda
from trainer.step_memory.request import StepMemory, StepRequest

# PEFT asks transformers by a name that it is about to drop; bitsandbytes says what it rounds.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*:UserWarning"),
]
WORDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3, "vocab_size": 1500}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = 4
CHECKPOINTS = {"gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """A training of a small model with random weights: what is measured and what is counted."""

    base: str
    method: Mapping[str, Any]
    tokens: int
    micro_batch: int = 1
    train: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "lora": Case("llama", {"kind": "lora"}, 200),
    "qlora, long rows": Case("llama", {"kind": "qlora", "dropout": 0.1}, 400),
    "qlora, checkpoints": Case("llama", {"kind": "qlora"}, 200, 2, CHECKPOINTS),
    "int8": Case("llama", {"kind": "qlora", "quant": "int8"}, 150),
    "dora": Case("llama", {"kind": "qdora"}, 100, 2),
    "nola": Case("llama", {"kind": "nola", "quant": "nf4", "r": 16}, 100, 2),
    "dylora": Case("phi", {"kind": "qdylora"}, 120, 2),
    "miss": Case("llama", {"kind": "miss", "alpha": 16}, 120, 4),
    "rank 256, 8-bit moments": Case(
        "phi", {"kind": "rslora", "r": 256, "optimizer": "adamw8bit"}, 64, 4
    ),
    "embedding trained": Case("falcon", {"kind": "qlora", "save": ["word_embeddings"]}, 100, 4),
    "t5": Case("t5", {"kind": "qlora", "partly_quantised": True}, 150, 2, CHECKPOINTS),
    "mixture": Case("mixture", {"kind": "qlora"}, 120, 2),
}


def model_config(base: str) -> Any:
    """Return the config of a small model of some architecture."""
    import transformers

    if base == "llama":
        return transformers.LlamaConfig(
            **SMALL, **WORDS, intermediate_size=384, num_key_value_heads=2,
            tie_word_embeddings=False,
        )  # fmt: skip
    if base == "phi":
        return transformers.PhiConfig(**SMALL, **WORDS, intermediate_size=512)
    if base == "falcon":
        return transformers.FalconConfig(**SMALL, **WORDS, multi_query=True)
    if base == "mixture":
        return transformers.Qwen3MoeConfig(
            **SMALL, **WORDS, intermediate_size=256, moe_intermediate_size=128, num_experts=8,
            num_experts_per_tok=2, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
        )  # fmt: skip
    return transformers.T5Config(
        **WORDS, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
        decoder_start_token_id=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip


def lay_out(case: Case, directory: Path) -> Path:
    """Write the model, its rows, all of one length, and the config; return the run directory."""
    import transformers

    config = model_config(case.base)
    seq2seq = config.is_encoder_decoder
    family = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    tiny.make_tokenizer().save_pretrained(str(directory / "model"))
    torch.manual_seed(0)
    family.from_config(config).save_pretrained(str(directory / "model"))
    rows = directory / "train.jsonl"
    row = json.dumps({"text": "a" * (case.tokens - 8), "mood": "b" * 6})
    rows.write_text(f"{row}\n" * ROWS, encoding="utf-8")
    settings = tiny.make_config(
        directory / "model", rows,
        method={"r": 8, "alpha": 16, "dropout": 0.0, **case.method},
        data={
            "prompt": "{text}", "completion": "{mood}",
            "loss_on": "completion" if seq2seq else "all",
        },
        train={
            "batch_size": ROWS, "micro_batch": case.micro_batch, "steps": 2,
            "max_length": case.tokens, **case.train,
        },
    )  # fmt: skip
    return tiny.write_config(directory / "run", settings)


@pytest.mark.parametrize("name", CASES)
def test_a_counted_step_takes_what_the_real_one_does(name: str, tmp_path: Path) -> None:
    """Static bytes and peak are those that the allocator of the CPU reports, within 5 %."""
    case = CASES[name]
    made = rig(lay_out(case, tmp_path))
    example = made.context.examples[0]
    seq2seq = case.base == "t5"
    static, peak = static_bytes(made), peak_bytes(made)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())

    found = count(
        StepRequest(
            config=json.loads((tmp_path / "model" / "config.json").read_text()),
            method=settings["method"],
            train=settings["train"],
            tokens=len(example.input_ids),
            loss_tokens=len(example.labels) if seq2seq else None,
            micro_batches=(case.micro_batch,),
            padded=False,
        )
    )

    # NOLA's matrices of signs are no part of the model.
    assert found.base + found.adapter == pytest.approx(static, rel=0.05)
    assert found.passes[0].peak == pytest.approx(peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-2-2b", "TinyLlama-1.1B, 16 bits, no checkpointing"])
def test_two_shallow_models_give_the_count_of_the_whole(name: str) -> None:
    """What is extended from a few layers is what was counted through all, almost to the byte.

    Gemma's layers come in pairs; without checkpoints all of them hold their activations.
    """
    found = count(StepRequest.model_validate(REQUESTS[name] | {"micro_batches": [1]}))
    whole = counted()[name]

    assert found.base == whole["base"]
    assert found.optimizer == whole["optimizer"]
    assert found.passes[0].peak == pytest.approx(whole["passes"][0]["peak"], rel=1e-4)
    assert found.passes[0].at == whole["passes"][0]["at"]


def count_llama(**more: Any) -> StepMemory:
    """Count a step of a small LLaMA on a card of 2,048 tokens."""
    sizes = {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
        "vocab_size": 300, "tie_word_embeddings": False,
    }  # fmt: skip
    request = {
        "config": sizes | more.pop("config", {}), "capability": T4, "tokens": 2048,
        "loss_tokens": 4,
    }  # fmt: skip
    return count(StepRequest.model_validate(request | more))


def test_attention_takes_all_scores_only_where_the_card_must() -> None:
    """On a T4 SDPA is linear in the tokens, but for heads that share keys; eager never is."""
    scores = 8 * 2048 * 2048 * 2  # of one layer, in 16 bits
    linear = count_llama().passes[0].peak
    eager = count_llama(attention="eager").passes[0].peak
    shared = {"num_key_value_heads": 2}
    on_t4 = count_llama(config=shared).passes[0].peak
    on_a10 = count_llama(config=shared, capability=(8, 6)).passes[0].peak

    assert eager > linear + 2 * scores
    assert on_t4 > linear + 2 * scores
    assert on_a10 < linear + scores / 2


def test_all_logits_in_float32_take_more_than_ours() -> None:
    """The loss of transformers makes the logits of every token; ours those that are learnt."""
    wide = {"vocab_size": 64_000}
    ours = count_llama(config=wide).passes[0].peak
    theirs = count_llama(config=wide, all_logits=True).passes[0].peak

    assert theirs > ours + 2048 * 64_000 * 8


def test_types_are_those_of_autocast_on_a_gpu() -> None:
    """Products are made in 16 bits; norms, powers and softmax in float32, as CUDA's list says."""
    half = torch.ones(2, 4, dtype=torch.float16)
    with like_cuda(T4), torch.autocast("cpu", dtype=torch.float16):
        product = torch.nn.functional.linear(half, half)
        norm = torch.nn.functional.layer_norm(half, (4,))
        power, softmax, total = half.pow(2), half.softmax(-1), half.sum()
        enabled = torch.is_autocast_enabled()
    after = torch.nn.functional.layer_norm(half, (4,))

    assert product.dtype is torch.float16
    assert {norm.dtype, power.dtype, softmax.dtype, total.dtype} == {torch.float32}
    assert enabled
    assert after.dtype is torch.float16


def test_paged_moments_are_no_memory_of_torch() -> None:
    """Large moments of a paged optimizer lie outside of what is counted on a GPU."""
    kept = {
        name: count_llama(method={"kind": "qlora", "r": 512, "optimizer": name}).optimizer
        for name in ("adamw", "adamw8bit", "paged_adamw8bit")
    }

    assert kept["adamw"] > 3.5 * kept["adamw8bit"]
    assert kept["paged_adamw8bit"] < kept["adamw8bit"] / 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "nobody_knows"}, "does not know"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"model_type": "llama", "hidden_size": 10**12}, "which is no size"),
        ({"model_type": "llama", "hidden_size": 65, "num_attention_heads": 8}, "cannot be counted"),
        ({"model_type": ["llama"]}, "does not know"),
    ],
)
def test_a_base_that_cannot_be_built_is_refused_with_the_reason(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """No config.json of a stranger ends in anything but a ConfigError that says why."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"config": config, "tokens": 16}), encoding="utf-8")

    with pytest.raises(ConfigError, match=reason):
        count(read_request(path))


def test_the_command_prints_one_object_and_runs_no_code_of_a_base(tmp_path: Path) -> None:
    """`auto_map` names code that is never looked for; stdout is JSON alone, and 78 a refusal."""
    config = {
        **BASES["gpt2"], "n_embd": 64, "n_head": 4, "n_layer": 2,
        "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"},
    }  # fmt: skip
    (tmp_path / "evil.py").write_text("raise SystemExit(99)\n", encoding="utf-8")
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"config": config, "tokens": 32}), encoding="utf-8")
    command = [sys.executable, "-m", "trainer", "step-memory", "--request", str(path)]
    done = subprocess.run(
        command, cwd=tiny.ROOT, env=tiny.quiet_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    path.write_text('{"config": {}, "tokens": 32, "colour": 1}', encoding="utf-8")
    refused = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert answer["passes"][0]["peak"] > answer["base"] > 50257 * 64 * 4
    assert refused.returncode == 78
    assert "colour: unknown key" in refused.stderr
