"""The hours of a job follow its rows, its settings, its machine and the bytes that travel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.memory_points import llama

from commands.runs.config import LoadedConfig, load
from commands.runs.planning.estimates import HERE, estimate_job
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.job_inputs import job_inputs
from commands.runs.upload_rate import record_upload, upload_file
from infra.offer import Offer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECIPES = sorted(
    path.parent.name for path in EXAMPLES.glob("*/run.yaml") if "quick" not in str(path)
)


@pytest.fixture(autouse=True)
def clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has never run anything, nor fetched a base."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


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


def test_rows_that_are_still_to_come_will_travel_too(tmp_path: Path) -> None:
    """A plan of a million rows sends more than one of ten, though neither file is here."""
    sent = []
    for rows in (10, 1_000_000):
        loaded = project(tmp_path / str(rows), plan={"rows": rows, "tokens": 100})
        (tmp_path / str(rows) / "train.jsonl").unlink()
        sent.append(job_inputs(loaded).sent_bytes)

    assert sent[1] - sent[0] == pytest.approx(5e8, rel=0.01)


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
    job = estimate_job(loaded, loaded.config.vm.card, offer=offer("0-5"))

    assert job.problem == ""
    assert job.fits
    assert job.hours is not None
    assert 0.1 < job.hours.likely < 40
    assert any("taken from `plan` in run.yaml" in note for note in job.notes)


PLANNED_WITHOUT_TORCH = """
import sys, time
for heavy in ("torch", "transformers", "peft", "numpy"):
    sys.modules[heavy] = None  # importing it fails, as where it is not installed
begun = time.process_time()
from pathlib import Path
from commands.runs.planning.make_page import make_plan
for path in sys.argv[1:]:
    page = make_plan(path)
    now = time.process_time()
    job = next(one.job for one in page.cards if one.job is not None)
    print(Path(path).parent.name, now - begun, job.hours is not None)
    begun = now
"""


def test_every_recipe_is_planned_in_seconds_without_torch(tmp_path: Path) -> None:
    """Where torch is not installed, a plan takes less than 3 s of processor, its imports included.

    The machine is one that this computer plays, since a plan of Azure would ask the network.
    """
    paths = []
    for name in RECIPES:
        settings = yaml.safe_load((EXAMPLES / name / "run.yaml").read_text())
        settings["vm"] = {"provider": "local", "gpu": settings["vm"]["gpu"]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump(settings))
        paths.append(str(tmp_path / name / "run.yaml"))
    done = subprocess.run(
        [sys.executable, "-c", PLANNED_WITHOUT_TORCH, *paths],
        cwd=EXAMPLES.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]

    assert [name for name, _, _ in lines] == RECIPES
    assert all(float(seconds) < 3 for _, seconds, _ in lines)
    assert all(has_hours == "True" for _, _, has_hours in lines)
