"""One changed token tells a causal model from one that reads both ways, without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.mixtures import make_mixture
from support.multimodal import TEXT_ALONE, WHOLE, make_multimodal

from trainer import model as models
from trainer.causal_probe import require_causal
from trainer.config import PrecisionChoice
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.method_table import MethodTable

FP32 = Precision(compute=PrecisionChoice.FP32, autocast=False, loss_scaling=False, reason="")
BF16 = Precision(compute=PrecisionChoice.BF16, autocast=True, loss_scaling=False, reason="")
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 3,
}  # fmt: skip
WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 256}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**WIDE),
    "roberta": lambda: transformers.RobertaConfig(**WIDE),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**WIDE),
    "electra": lambda: transformers.ElectraConfig(**WIDE, embedding_size=32),
}
CAUSAL: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "mistral": lambda: transformers.MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(**WIDE, head_dim=8, sliding_window=4),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "falcon": lambda: transformers.FalconConfig(**SIZES),
    "decoding bert": lambda: transformers.BertConfig(**WIDE, is_decoder=True),
}


def built(config: Any) -> Any:
    """Return a random model of this config, as training would load it."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def refusal(base: Any, precision: Precision = FP32) -> str:
    """Return why a base is no causal model; empty if it is one."""
    try:
        require_causal(base, precision)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_an_encoder_is_found_out(kind: str, precision: Precision) -> None:
    """Its earlier logits move with the last token, by more than rounding (transformers#12704)."""
    base = built(ENCODERS[kind]()).to(models.DTYPES[precision.compute])
    with torch.no_grad():  # a model that has learnt looks around itself more than a fresh one
        for tensor in base.parameters():
            tensor.mul_(8 if tensor.dim() > 1 else 1)

    assert "is no causal model: with another last token" in refusal(base, precision)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_is_let_through(kind: str) -> None:
    """Sliding windows, learnt places, states instead of attention: none looks ahead."""
    assert refusal(built(CAUSAL[kind]())) == ""


@pytest.mark.parametrize("family", [*WHOLE, *TEXT_ALONE])
def test_a_multimodal_model_reads_text_one_way(tmp_path: Path, family: str) -> None:
    """Gemma 3 looks both ways within a picture only."""
    assert refusal(loaded(make_multimodal(tmp_path, family))) == ""


def test_a_prefix_model_is_found_out() -> None:
    """PaliGemma reads the whole of a prompt from both sides, also one without a picture."""
    text = {**WIDE, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 2}
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config={**tower, **sizes}, projection_dim=32, image_token_index=319
    )
    torch.manual_seed(0)
    base = transformers.AutoModelForImageTextToText.from_config(config).eval()

    assert "is no causal model" in refusal(base)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_mixture_is_let_through(tmp_path: Path, family: str) -> None:
    """Another last token regroups the tokens of its experts, which is rounding."""
    assert refusal(loaded(make_mixture(tmp_path, family))) == ""


def loaded(place: Path, **method: Any) -> Any:
    """Load a base as training does, in 4 bits."""
    source = models.Source(name=str(place), revision=None, trust_remote_code=False)
    table = MethodTable.model_validate({"kind": "qlora", **method})
    return models.load_base(source, table, precision=FP32, device=torch.device("cpu"))


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_the_probe_leaves_no_trace(tmp_path: Path, quant: str) -> None:
    """Random numbers, the mode, the weights and the next answer are what they would have been."""
    base = loaded(tiny.make_model(tmp_path), quant=quant)
    fresh = loaded(tmp_path, quant=quant)
    ids = torch.tensor([[5, 9, 30, 44]])
    base.train()
    torch.manual_seed(5)
    require_causal(base, FP32)
    after = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        answers = [model(input_ids=ids).logits for model in (base, fresh.train())]

    assert base.training
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(*answers)
    assert all(value.grad is None for value in base.parameters())


def test_a_job_on_an_encoder_in_disguise_ends_before_training(tmp_path: Path) -> None:
    """A BERT whose config claims to be a decoder, and whose attention is not, is refused."""
    tiny.make_tokenizer().save_pretrained(str(tmp_path / "model"))
    config = transformers.BertConfig(**WIDE, is_decoder=True, architectures=["BertLMHeadModel"])
    built(config).save_pretrained(str(tmp_path / "model"))
    run = tiny.make_run(tmp_path, rows=4, method={"kind": "lora"}, train={"steps": 1})
    original = transformers.BertLMHeadModel.forward

    def both_ways(self: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        found = original(self, input_ids=input_ids, **more)
        found.logits = found.logits + found.logits.mean(dim=1, keepdim=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.BertLMHeadModel, "forward", both_ways)
        with pytest.raises(ConfigError, match="BertLMHeadModel is no causal model"):
            run_job(JobOptions(run_dir=run), lambda _text: None)
    assert not (run / "metrics.jsonl").exists()
