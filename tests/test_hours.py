"""The hours of a plan follow counted work, published times, the rows and the machine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hours_points import POINTS, SIZES, quantile
from support.hours_tables import PAGE, written
from support.memory_points import llama

from commands.runs.config import LoadedConfig, load
from commands.runs.planning.estimates import HERE, estimate_job
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.job_inputs import job_inputs
from commands.runs.upload_rate import record_upload, upload_file
from infra.provider import Offer
from trainer.config import PrecisionChoice
from trainer.device.shapes import read_shape
from trainer.estimate.gpus import FITTED_FACTOR, GPUS, UNPACKED_BYTES
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.step_time import step_seconds, work_seconds
from trainer.estimate.work import Work, pass_work
from trainer.method_table import Quant

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECIPES = sorted(
    path.parent.name for path in EXAMPLES.glob("*/run.yaml") if "quick" not in str(path)
)
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


def project(folder: Path, rows: int = 200, **tables: Any) -> LoadedConfig:
    """Write a run.yaml of a base of 135 M, its description, and so many short rows."""
    folder.mkdir(exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    description = llama(576, 1536, 30, 9, 3, 49152)
    (folder / "model" / "config.json").write_text(json.dumps(description))
    lines = [json.dumps({"text": f"row {n} " * 20, "label": "good"}) for n in range(rows)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    config = {
        "name": "hours",
        "vm": {"provider": "azure", "gpu": "T4", "max_price": 0.25},
        "model": {"id": "model"},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"epochs": 1, "batch_size": 8, "max_length": 256, "threads": 2},
        **tables,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


def part(job: JobEstimate, name: str) -> float:
    """The likely hours of one part."""
    return next(one.hours.likely for one in job.parts if one.name == name)


def offer(band: str = "", size: str = "Standard_NC4as_T4_v3") -> Offer:
    """An offer of Azure's with that eviction band."""
    return Offer(
        provider="azure", region="westus2", size=size, spot_usd_per_h=0.1, eviction_band=band
    )


def test_epochs_have_hours_since_all_rows_are_counted(tmp_path: Path) -> None:
    """Twice the rows take twice the steps, and an epoch more takes no less."""
    small = estimate_job(project(tmp_path / "a", rows=200), "T4")
    large = estimate_job(project(tmp_path / "b", rows=400), "T4")

    assert part(large, "train") == pytest.approx(2 * part(small, "train"))
    assert large.trained_tokens == pytest.approx(2 * (small.trained_tokens or 0), rel=0.06)


def test_the_parts_stand_in_the_order_in_which_they_happen(tmp_path: Path) -> None:
    """With a table `eval` the base is scored before, and the adapted model after the training."""
    scored = project(
        tmp_path,
        data={"train": "train.jsonl", "eval": "train.jsonl", "prompt": "{text}",
              "completion": "{label}"},
        eval={"kind": "label", "labels": ["good", "bad"]},
    )  # fmt: skip
    job = estimate_job(scored, "T4", offer=offer("0-5"))

    assert [one.name for one in job.parts] == [
        "rent", "set-up", "send", "load", "score before", "train", "evictions", "score after",
        "fetch",
    ]  # fmt: skip
    assert all(one.billed and one.source for one in job.parts)
    assert job.hours is not None
    assert job.hours.low < job.hours.likely < job.hours.high


def test_evictions_follow_the_band_of_the_offer(tmp_path: Path) -> None:
    """A band of 15-20 % an hour costs more than 0-5, and one that nobody publishes is told."""
    loaded = project(tmp_path, rows=4000)
    rare, often, unknown = (
        estimate_job(loaded, "T4", offer=offer(band)) for band in ("0-5", "15-20", "")
    )
    sources = {one.name: one.source for one in unknown.parts}

    assert part(often, "evictions") > 5 * part(rare, "evictions") > 0
    assert "no band is published" in sources["evictions"]


def test_a_rehearsal_has_the_evictions_that_it_asks_for_and_rents_nothing(tmp_path: Path) -> None:
    """On this computer nothing is billed, and each rehearsed eviction costs a boot."""
    vm = {"provider": "local", "gpu": "T4"}
    calm = estimate_job(project(tmp_path / "a", vm=vm), HERE)
    rehearsed = estimate_job(project(tmp_path / "b", vm={**vm, "rehearse_evictions": [5, 9]}), HERE)

    assert not any(one.billed or one.name == "rent" for one in calm.parts)
    assert part(calm, "evictions") == 0
    assert part(rehearsed, "evictions") > 0


def test_an_own_machine_is_neither_rented_nor_evicted(tmp_path: Path) -> None:
    """The hours of a machine over SSH are those of the work, and none is billed."""
    ssh = {"host": "box", "user": "me", "key": "key"}
    job = estimate_job(project(tmp_path, vm={"provider": "ssh", "gpu": "T4", "ssh": ssh}), "T4")

    assert "rent" not in [one.name for one in job.parts]
    assert part(job, "evictions") == 0
    assert not any(one.billed for one in job.parts)
    assert part(job, "train") > 0


def test_a_size_whose_driver_is_installed_takes_longer_to_set_up(tmp_path: Path) -> None:
    """An A10 of Azure boots an image without driver; the T4's image brings it."""
    loaded = project(tmp_path)
    t4 = estimate_job(loaded, "T4", offer=offer())
    a10 = estimate_job(loaded, "A10", offer=offer(size="Standard_NV36ads_A10_v5"))

    assert part(a10, "set-up") > part(t4, "set-up") + 0.1


def test_the_bytes_that_travel_decide_how_long_sending_takes(tmp_path: Path) -> None:
    """A base that lies here is sent with the rows; one on a hub is not."""
    here = project(tmp_path / "a")
    (tmp_path / "a" / "model" / "model.safetensors").write_bytes(b"0" * 4_000_000)
    there = project(tmp_path / "b", model={"id": "microsoft/phi-1_5"})

    assert job_inputs(here).sent_bytes - job_inputs(there).sent_bytes == 4_000_000
    assert part(estimate_job(here, "T4"), "send") > part(estimate_job(there, "T4"), "send")
    assert part(estimate_job(there, "T4"), "load") > part(estimate_job(here, "T4"), "load")


def test_a_rate_that_was_measured_takes_the_place_of_the_assumed_one(
    tmp_path: Path,
) -> None:
    """A run that sent enough leaves its rate and its day for the next plan on that provider."""
    loaded, cache = project(tmp_path / "a"), tmp_path / "home" / "cache"
    assumed = estimate_job(loaded, "T4")
    record_upload(cache, "azure", sent_bytes=1000, seconds=1.0)
    record_upload(cache, "local", sent_bytes=10_000_000, seconds=1.0)

    assert estimate_job(loaded, "T4") == assumed

    record_upload(cache, "azure", sent_bytes=10_000_000, seconds=20.0)
    sent = next(one for one in estimate_job(loaded, "T4").parts if one.name == "send")

    assert sent.hours.likely == pytest.approx(job_inputs(loaded).sent_bytes / 5e5 / 3600)
    assert sent.measured
    assert "0.5 MB/s from here on 2" in sent.source

    upload_file(cache, "azure").write_text('{"bytes_per_s": "fast"}')
    assert estimate_job(loaded, "T4") == assumed


def test_validation_between_the_steps_takes_time(tmp_path: Path) -> None:
    """A held-out loss every step is a forward pass over the held-out rows each time."""
    data = {"train": "train.jsonl", "eval": "train.jsonl", "prompt": "{text}",
            "completion": "{label}"}  # fmt: skip
    train = {"epochs": 1, "batch_size": 8, "max_length": 256}
    plain = project(tmp_path / "a", data=data, train=train)
    checked = project(tmp_path / "b", data=data, train={**train, "validate_every": 5})

    assert part(estimate_job(checked, "T4"), "train") > part(estimate_job(plain, "T4"), "train")


def test_what_is_missing_says_what_to_do(tmp_path: Path) -> None:
    """An unknown base, an unknown card and absent rows leave no parts, but a sentence."""
    base = estimate_job(project(tmp_path / "a", model={"id": "owner/name"}), "T4")
    card = estimate_job(project(tmp_path / "b"), "K80")
    absent = project(tmp_path / "c")
    (tmp_path / "c" / "train.jsonl").unlink()
    rows = estimate_job(absent, "T4")

    assert "`hf download` brings it" in base.problem
    assert "`K80`" in card.problem
    assert "T4" in card.problem
    assert "`plan: {rows: ..., tokens: ...}`" in rows.problem
    assert (base.parts, card.parts, rows.parts) == ((), (), ())
    assert rows.memory_bytes is not None


def test_a_card_that_only_another_vendor_rents_has_its_own_figures(tmp_path: Path) -> None:
    """The A10G is not taken for an A10, whose data sheet is another."""
    loaded = project(tmp_path, model={"id": "microsoft/phi-2"})

    assert estimate_job(loaded, "A10G").card == "A10G"
    assert part(estimate_job(loaded, "A10G"), "train") > 0
    assert part(estimate_job(loaded, "A100"), "train") < part(estimate_job(loaded, "T4"), "train")


def test_nobody_has_measured_our_own_loop_and_the_plan_says_so(tmp_path: Path) -> None:
    """A speed that is fitted on other loops is never called ours."""
    job = estimate_job(project(tmp_path), "T4")

    assert any("nobody has measured qft's own loop" in note for note in job.notes)
    assert not next(one for one in job.parts if one.name == "train").measured


def test_files_are_read_once_for_all_offers(tmp_path: Path) -> None:
    """What does not depend on an offer is remembered until a file or the config changes."""
    loaded = project(tmp_path)
    first = job_inputs(loaded)

    assert job_inputs(load(tmp_path / "run.yaml")) is first
    project(tmp_path, rows=300)
    assert job_inputs(loaded) is not first
    assert job_inputs(loaded).lengths != first.lengths


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_from_its_config_alone(name: str, tmp_path: Path) -> None:
    """In a clean clone, without a network, rows or base, every recipe has memory and hours."""
    (tmp_path / "run.yaml").write_text((EXAMPLES / name / "run.yaml").read_text())
    loaded = load(tmp_path / "run.yaml")
    job = estimate_job(loaded, loaded.config.vm.gpu, offer=offer("0-5"))

    assert job.problem == ""
    assert job.fits
    assert job.hours is not None
    assert 0.1 < job.hours.likely < 40
    assert any("taken from `plan` in run.yaml" in note for note in job.notes)


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
