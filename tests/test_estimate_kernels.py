"""The formula of memory knows what each faster kernel keeps less: it is counted in the kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import read_shape
from trainer.estimate.activations import kept_bytes
from trainer.estimate.gpus import GPUS
from trainer.estimate.memory import estimate, logits_bytes
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.training import estimate_training
from trainer.estimate.weights import quantised_parameters
from trainer.estimate.with_kernels import UNPACKED, with_kernels
from trainer.kernels import attention, lora_dropout, rms_norm, swiglu
from trainer.kernels.attention import UnmaskedAttention
from trainer.kernels.kernel_set import Card, Kernel
from trainer.kernels.linear_cross_entropy import CHUNK_BYTES, chunk_rows
from trainer.method_table import Quant

ROWS, TOKENS, LAYERS, RANK = 3, 64, 2, 4
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384,
    "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 320, "tie_word_embeddings": True,
}  # fmt: skip
SETUP = TrainingSetup(
    tokens=TOKENS, micro_batch=ROWS, quant=Quant.NONE, r=RANK, checkpointing=False,
    precision=PrecisionChoice.BF16,
)  # fmt: skip
CARD = Card(device=torch.device("cpu"), capability=None, dtype=torch.bfloat16)
KERNELS: dict[str, Callable[[], Kernel]] = {
    "attention": UnmaskedAttention,
    "rms_norm": lambda: rms_norm.RmsNorm(lambda: rms_norm.PLAIN),
    "swiglu": lambda: swiglu.SwiGlu(lambda: swiglu.PLAIN),
}


def adapted(dropout: float) -> Any:
    """A LLaMA in bfloat16 with LoRA in float32 on every linear layer, as the trainer has it."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16)
    settings = LoraConfig(r=RANK, lora_dropout=dropout, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, by PEFT
        return get_peft_model(base, settings).train()


@pytest.fixture(scope="module")
def model() -> Any:
    """A model without dropout."""
    return adapted(0.0)


def counted(model: Any, kernel: Kernel | None) -> int:
    """Return the bytes that the layers keep for their backward pass, each storage once."""
    inside: AbstractContextManager[Any] = nullcontext()
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, TOKENS // 2 :] = 0
    batch = {"input_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long), "attention_mask": mask}
    if kernel is not None:
        assert kernel.unsuitable(model, CARD) is None
        assert kernel.prepare(model) > 0
        if not getattr(kernel, "masked", True):
            del batch["attention_mask"]
        inside = kernel.enabled(batch)
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.numel() >= ROWS * TOKENS:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place would be given to another one
        return tensor

    body = model.get_base_model().model
    with inside, torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(pack, lambda one: one):
        body(**batch, use_cache=False).last_hidden_state.sum()
    return sum(kept.values())


def computed(*names: str) -> float:
    """Return the same by the formula."""
    shape = read_shape(CONFIG)
    (block,) = shape.text_blocks
    return LAYERS * ROWS * TOKENS * kept_bytes(shape, block, with_kernels(SETUP, names))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_keeps_as_much_less_as_the_formula_says(
    model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the layers keep with one kernel and without differs by what is computed."""
    monkeypatch.setattr(attention, "_takes_grouped_heads", lambda *_: True)  # as newer cards do
    fewer = counted(model, None) - counted(model, KERNELS[name]())

    assert fewer == computed() - computed(name) > 0


def test_keys_are_kept_for_every_head_where_a_card_needs_them_repeated(model: Any) -> None:
    """In float16, which is what older cards have, only the mask is not kept."""
    fewer = counted(model, None) - counted(model, UnmaskedAttention())
    half = replace(SETUP, precision=PrecisionChoice.FP16)
    shape = read_shape(CONFIG)
    each = [
        kept_bytes(shape, shape.text_blocks[0], work)
        for work in (half, with_kernels(half, ["attention"]))
    ]

    assert fewer == LAYERS * ROWS * TOKENS * (each[0] - each[1])


def test_a_dropout_made_again_from_its_seed_keeps_nothing(model: Any) -> None:
    """With the kernel, layers with dropout keep what they keep without, as the formula says."""
    kernel = lora_dropout.LoraDropout(lambda: lora_dropout.PLAIN)
    setup = replace(SETUP, dropout=True)

    # A matrix in 16 bits is counted on one side only: autocast keeps its own of the other.
    assert counted(adapted(0.1), kernel) == pytest.approx(counted(model, None), rel=0.002)
    assert with_kernels(setup, ["lora_dropout"]) == SETUP
    assert with_kernels(setup, ["unheard_of"]) == setup


def test_head_and_loss_in_one_hold_logits_once() -> None:
    """Their buffer is as large as the kernel makes it: in 16 bits, and no copy of it in float32."""
    setup = replace(SETUP, tokens=2048, micro_batch=8)
    large = {**CONFIG, "vocab_size": 128256}
    fused = logits_bytes(read_shape(large), with_kernels(setup, ["linear_cross_entropy"]))
    weight = torch.empty(128256, 128, dtype=torch.bfloat16, device="meta")
    rows = chunk_rows(2048 * 8, weight, CHUNK_BYTES)

    assert fused == pytest.approx(rows * 128256 * 2, rel=0.1)
    assert logits_bytes(read_shape(large), setup) == 6 * fused


def test_a_card_with_kernels_needs_less() -> None:
    """An estimate for such a card counts with them; a plan, which cannot know, does not."""
    setup = {
        "model": {"id": "./model"}, "method": {"kind": "qlora", "dropout": 0.05},
        "data": {"train": "rows", "prompt": "{a}", "completion": "{b}"},
        "train": {"micro_batch": 8, "steps": 1, "gradient_checkpointing": False},
    }  # fmt: skip
    config = TrainerConfig.model_validate(setup)
    card = GPUS["A10"]
    names = (*KERNELS, "lora_dropout", "linear_cross_entropy")
    planned, counted_on = (
        estimate_training(config, CONFIG, gpu=gpu)["memory_bytes"]["activations"]
        for gpu in (card, replace(card, kernels=names))
    )

    assert card.kernels == ()
    assert counted_on < 0.8 * planned


def test_values_that_are_kept_unpacked_are_counted() -> None:
    """They take the bytes of the compute type beside the 4 bits, and nothing is unpacked in a step.

    Layers in 8 bits are never kept.
    """
    four_bit = replace(SETUP, quant=Quant.NF4, tokens=8, micro_batch=1)
    eight_bit = replace(four_bit, quant=Quant.INT8)
    before, after = (
        estimate(CONFIG, with_kernels(four_bit, names)) for names in ([], [UNPACKED, "linear_4bit"])
    )
    weights = quantised_parameters(read_shape(CONFIG), four_bit)

    assert after.base - before.base == 2 * weights
    assert after.workspace < before.workspace
    assert estimate(CONFIG, eight_bit) == estimate(CONFIG, with_kernels(eight_bit, [UNPACKED]))
