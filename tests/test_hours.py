"""Hours follow counted work, which torch counts alike, and speeds fitted on published times."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.hours_points import POINTS, SIZES, quantile
from support.hours_tables import PAGE, written
from support.memory_points import llama

from trainer.config import PrecisionChoice
from trainer.device.shapes import read_shape
from trainer.estimate.gpus import FITTED_FACTOR, GPUS, UNPACKED_BYTES
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import step_seconds, work_seconds
from trainer.estimate.work import Work, pass_work
from trainer.method_table import Quant

SMALL = llama(64, 160, 6, 4, 4, 320)
FITTED = sorted({point.card for point in POINTS})


@pytest.fixture(autouse=True)
def clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has never run anything, nor fetched a base."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def setup(**changes: Any) -> TrainingSetup:
    """A setup of short rows without quantisation, adapted everywhere."""
    given = {"tokens": 24, "micro_batch": 2, "quant": Quant.NONE, "r": 4}
    return TrainingSetup(**{**given, "checkpointing": False, **changes})


@pytest.fixture(scope="module")
def adapted() -> Any:
    """A small model with LoRA at every linear layer, as PEFT makes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    names = {key: value for key, value in SMALL.items() if key != "model_type"}
    base = LlamaForCausalLM(LlamaConfig(**names, attn_implementation="eager"))
    with warnings.catch_warnings():  # transformers deprecates a name that PEFT asks for
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_counted_products_are_those_that_torch_counts(adapted: Any, *, checkpointing: bool) -> None:
    """The FLOP of a forward and a backward pass are those of torch's own counter, within 4 %."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    warnings.simplefilter("ignore", FutureWarning)
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    ids = torch.randint(0, 320, (2, 24))
    with FlopCounterMode(display=False) as counter:
        adapted(input_ids=ids, labels=ids).loss.backward()
    adapted.gradient_checkpointing_disable()
    counted = pass_work(read_shape(SMALL), setup(checkpointing=checkpointing))

    assert counted.flops == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_only_targets_reach_the_head() -> None:
    """With 3 of 24 tokens learnt the head's products are an eighth, and no layer's change."""
    shape = read_shape(SMALL)
    every, some = pass_work(shape, setup()), pass_work(shape, setup(loss_tokens=3))

    assert every.flops - some.flops == 4 * 2 * 21 * 320 * 64


def test_an_encoder_reads_the_prompt_and_a_decoder_the_answer() -> None:
    """Of a T5 no token passes both stacks, so that a short answer costs little."""
    t5 = {"model_type": "t5", "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16,
          "num_layers": 4, "vocab_size": 320}  # fmt: skip
    shape = read_shape(t5)
    whole = pass_work(shape, setup(tokens=100)).flops
    short, long = (pass_work(shape, setup(tokens=100, loss_tokens=n)).flops for n in (5, 95))

    assert short < long < whole


def test_short_rows_of_a_large_base_wait_for_its_weights_and_not_for_products() -> None:
    """A row of 32 tokens at a time leaves a T4 unpacking 4-bit weights most of the time."""
    work = pass_work(read_shape(SIZES["llama-2-7b"]), TrainingSetup(tokens=32))
    card = GPUS["T4"]

    assert work.unpacked * UNPACKED_BYTES / card.bytes_per_s > work.flops / card.flops


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"tokens": 200}, {"tokens": 100}),
        ({"checkpointing": True}, {"checkpointing": False}),
        ({"quant": Quant.NF4}, {"quant": Quant.NONE}),
        ({"dora": True}, {"dora": False}),
        ({"r": 256}, {"r": 4}),
        ({"bases": 256}, {"bases": None}),
        ({"loss_tokens": 24}, {"loss_tokens": 1}),
        ({"micro_batch": 1}, {"micro_batch": 4}),
    ],
)
@pytest.mark.parametrize("card", sorted(GPUS))
def test_more_work_takes_no_less_time(
    more: Mapping[str, Any], less: Mapping[str, Any], card: str
) -> None:
    """Longer rows, recomputing, unpacking, DoRA, rank, targets and smaller pieces all cost time."""
    shape, gpu = read_shape(SIZES["llama-3.2-3b"]), GPUS[card]
    long, short = (
        step_seconds(shape, setup(**each), gpu=gpu, batch_size=4) for each in (more, less)
    )

    assert long >= short
    assert step_seconds(shape, setup(**more), gpu=gpu, batch_size=8) > long


def test_a_card_is_as_slow_as_what_it_has_least_of() -> None:
    """Products and bytes add up on the card; kernels are started meanwhile."""
    card = replace(GPUS["T4"], flops=1e12, bytes_per_s=1e9, launch_s=1e-3)

    assert work_seconds(Work(flops=1e12, bytes=1e9, launches=10), card) == pytest.approx(2.0)
    assert work_seconds(Work(flops=1e12, bytes=1e9, launches=5000), card) == pytest.approx(5.0)
    assert work_seconds(Work(float32_flops=card.float32_flops), card) == pytest.approx(1.0)


def test_published_times_lie_as_near_as_the_range_says() -> None:
    """Half of the published times are within a fifth, nine tenths within the factor of a plan."""
    errors = [point.error for point in POINTS]

    assert quantile(errors, 0.5) < 1.2
    assert quantile(errors, 0.9) <= FITTED_FACTOR
    assert len(errors) >= 40


@pytest.mark.parametrize("card", FITTED)
def test_no_card_is_fast_or_slow_all_the_time(card: str) -> None:
    """The median of a card's ratios of estimated to published time is near one."""
    ratios = [point.estimate / point.seconds for point in POINTS if point.card == card]

    assert 0.85 < quantile(ratios, 0.5) < 1.15


@pytest.mark.parametrize("card", sorted(GPUS))
def test_every_speed_has_a_source_and_says_what_it_is(card: str) -> None:
    """A card with published times has the narrow range; others say that they are scaled."""
    gpu = GPUS[card]
    times = sum(point.card == card for point in POINTS)

    assert gpu.source
    if times >= 2:
        assert gpu.factor == FITTED_FACTOR
    elif not gpu.source.startswith("fitted"):
        assert "scaled by the data sheet" in gpu.source
    assert gpu.factor >= FITTED_FACTOR


def test_float32_layers_of_a_t5_are_slow_in_float16() -> None:
    """What tensor cores do not multiply counts apart: `wo` in float16, nothing in bfloat16."""
    t5 = read_shape({"model_type": "t5", "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16,
                     "num_layers": 4, "vocab_size": 320})  # fmt: skip
    half = pass_work(t5, setup(precision=PrecisionChoice.FP16))
    brain = pass_work(t5, setup(precision=PrecisionChoice.BF16))

    assert half.float32_flops > 0
    assert brain.float32_flops == 0
    assert half.flops + half.float32_flops == pytest.approx(brain.flops)


def test_the_articles_hours_lie_in_the_range_of_the_rows_that_they_allow() -> None:
    """7 h of Phi-1.5 on a T4 and 18 h of OpenLLaMA-7B on an A10G are neither foreign nor fitted."""
    toxic = TrainingSetup(tokens=1024, dropout=True)
    chat = TrainingSetup(
        tokens=900,
        targets=("q_proj", "k_proj", "v_proj"),
        dropout=True,
        precision=PrecisionChoice.BF16,
    )
    t4, a10g = GPUS["T4"], GPUS["A10G"]
    longest = step_seconds(read_shape(SIZES["phi-1.5"]), toxic, gpu=t4, batch_size=8) * 1000
    usual = step_seconds(read_shape(SIZES["llama-2-7b"]), chat, gpu=a10g, batch_size=4) * 8750
    short = replace(chat, tokens=400)
    least = step_seconds(read_shape(SIZES["llama-2-7b"]), short, gpu=a10g, batch_size=4) * 8750

    assert longest / 3600 == pytest.approx(4.2, abs=0.05)  # as docs/hours.md says
    assert longest / 3600 * t4.factor > 7
    assert least / 3600 < 18 < usual / 3600


def test_the_page_on_hours_has_the_tables_of_the_program() -> None:
    """Every figure of docs/hours.md is computed; `make hours` writes them anew."""
    page = PAGE.read_text(encoding="utf-8")

    assert written(page) == page
