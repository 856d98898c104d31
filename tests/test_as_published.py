"""`qft plan --as published` says whether a run would fit in the articles' loop, and what helps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli import app
from commands.ui.errors import UsageError
from trainer.config import PrecisionChoice
from trainer.estimate.as_published import (
    ATTENTION,
    CHECKPOINTING,
    EMBEDDINGS,
    LOGITS,
    as_published,
    published_setup_of,
)
from trainer.estimate.common_bases import find_by_id
from trainer.estimate.gpus import GPUS
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.method_table import Quant

PHI_2 = find_by_id("microsoft/phi-2")
T4 = GPUS["T4"].memory_bytes
ROOT = Path(__file__).resolve().parent.parent
ARTICLE = TrainingSetup(tokens=1024, r=64, dropout=True, loss_tokens=8)


def shape_of_phi() -> Any:
    """The sizes of Phi-2."""
    assert PHI_2 is not None
    return PHI_2.config


def plan(folder: Path, *arguments: str, **tables: Any) -> Any:
    """Run `qft plan --as published` on the article's run, with other tables."""
    rows = ['{"text": "a film", "label": "positive"}\n'] * 3
    (folder / "train.jsonl").write_text("".join(rows))
    config = {
        "name": "phi2",
        "vm": {"provider": "azure", "gpu": "T4", "max_price": 0.2},
        "model": {"id": "microsoft/phi-2"},
        "method": {"kind": "qlora", "r": 64, "dropout": 0.1},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 9, "batch_size": 4, "micro_batch": 1, "max_length": 1024},
        **tables,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    wanted = ["plan", str(folder / "run.yaml"), "--as", "published", *arguments]
    return CliRunner().invoke(app, wanted)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, and a hub that nobody reaches."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def test_the_article_s_run_does_not_fit_as_published_and_does_here(tmp_path: Path) -> None:
    """Phi-2 with rank 64 at 1,024 tokens: the answer, the range and four savings, in 80 columns."""
    done = plan(tmp_path)
    lines = done.stdout.splitlines()

    assert done.exit_code == 0, done.output
    assert lines[0] == "as published: 16 GB T4: does not fit"
    assert any(line.startswith("by this trainer: fits") for line in lines)
    for name in (CHECKPOINTING, ATTENTION, LOGITS, EMBEDDINGS):
        (line,) = [line for line in lines if line.startswith(f"  {name}")]
        assert line.split()[-1] == "GB"
        assert float(line.split()[-2]) < 0
    assert "rows of up to about" in done.stdout
    assert max(map(len, lines)) <= 80


def test_the_document_shows_what_is_printed(tmp_path: Path) -> None:
    """`docs/memory-points.md` has the very lines."""
    page = (ROOT / "docs" / "memory-points.md").read_text(encoding="utf-8")

    assert "".join(f"    {line}\n" for line in plan(tmp_path).stdout.splitlines()) in page


def test_the_figures_are_there_for_a_script(tmp_path: Path) -> None:
    """`--json` has both needs with their ranges, and the savings in bytes."""
    found = json.loads(plan(tmp_path, "--json").stdout)

    assert (found["published"]["fits"], found["ours"]["fits"]) == (False, True)
    need = found["published"]["need_bytes"]
    assert need["low"] < need["likely"] < need["high"]
    assert len(found["savings"]) == 4
    assert found["published"]["longest_tokens"] < 1024


def test_without_a_card_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    """The error names the key to set."""
    done = plan(tmp_path, vm={"provider": "local", "gpu": ""})

    assert isinstance(done.exception, UsageError)
    assert "vm.gpu" in (done.exception.hint or "")


def test_the_rank_is_not_what_ran_out_of_memory() -> None:
    """With rank 4 the published loop needs a tenth less at the same length, and fits no more."""
    found = as_published(shape_of_phi(), ARTICLE, card_bytes=T4)

    assert found.small_rank.reserved > 0.9 * found.published.reserved
    assert not found.fits(found.small_rank, T4)


def test_the_longest_rows_that_fit_fit() -> None:
    """The length that is named fits in the published loop, and one token more does not."""
    found = as_published(shape_of_phi(), ARTICLE, card_bytes=T4)
    published = published_setup_of(ARTICLE)
    needs = [
        estimate(shape_of_phi(), replace(published, tokens=(found.longest or 0) + more)).reserved
        for more in (0, 1)
    ]

    assert needs[0] <= T4 < needs[1]
    assert as_published(shape_of_phi(), ARTICLE, card_bytes=1e9).longest is None


def test_each_saving_is_found_by_switching_it_alone() -> None:
    """The need without a saving is that of the published loop with that setting switched."""
    found = as_published(shape_of_phi(), ARTICLE, card_bytes=T4)
    savings = {one.name: one.bytes for one in found.savings}
    checkpointed = estimate(
        shape_of_phi(), replace(published_setup_of(ARTICLE), checkpointing=True)
    )

    expected = found.published.reserved - checkpointed.reserved
    assert savings[CHECKPOINTING] == pytest.approx(expected)
    assert all(one >= 0 for one in savings.values())


def test_an_unquantised_base_is_not_cast_up_as_published() -> None:
    """`prepare_model_for_kbit_training` is for quantised bases: else embeddings save nothing."""
    work = replace(ARTICLE, quant=Quant.NONE, precision=PrecisionChoice.BF16)
    found = as_published(shape_of_phi(), work, card_bytes=T4)

    assert {one.name: one.bytes for one in found.savings}[EMBEDDINGS] == 0
