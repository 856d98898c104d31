"""A plan without a network takes the sizes of a common base from the table, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from support import model_hub
from support.model_hub import ModelHub, Repository

from commands.runs.base_description import config_for_plan, described, did_you_mean, table_base
from commands.runs.config import LoadedConfig, load
from commands.runs.hub_base import inspect_base
from commands.runs.planning.estimates import estimate_run, why_unknown
from commands.runs.planning.make_page import make_plan
from trainer import hub_models
from trainer.estimate.common_bases import find_by_id

PHI = "microsoft/phi-2"
PHI_2 = {
    "architectures": ["PhiForCausalLM"], "model_type": "phi", "vocab_size": 51200,
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
    "qk_layernorm": False, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
"""The published config.json of Phi-2."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub without a model, for a user whose cache is empty."""
    with model_hub.running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
        yield running


def project(folder: Path, model: str, **tables: object) -> LoadedConfig:
    """Write a run.yaml with that base, and a row."""
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    config: Mapping[str, object] = {
        "name": "tiny",
        "vm": {"provider": "local", "gpu": "T4"},
        "model": {"id": model},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 9},
        **tables,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


def gpu_bytes(loaded: LoadedConfig) -> float:
    """How much memory the plan says that the training takes."""
    estimate = estimate_run(loaded)
    assert estimate is not None
    return float(estimate["memory_bytes"]["reserved"])


def test_the_table_gives_the_estimate_of_the_published_config(
    hub: ModelHub, tmp_path: Path
) -> None:
    """Offline a common base has the memory that its own config.json gives when the hub answers."""
    loaded = project(tmp_path, PHI)
    offline = gpu_bytes(loaded)
    files = {"config.json": json.dumps(PHI_2).encode(), "tokenizer.json": b"{}"}
    hub.models[PHI] = Repository(files={**files, "model.safetensors": b"\x02" + b"\0" * 7 + b"{}"})

    assert inspect_base(loaded, lambda _text: None) is not None
    assert table_base(loaded) is None
    assert gpu_bytes(loaded) == offline


def test_what_the_hub_says_goes_before_the_table(hub: ModelHub, tmp_path: Path) -> None:
    """A base whose config.json has other sizes than the table is planned with those of the file."""
    loaded = project(tmp_path, PHI)
    offline = gpu_bytes(loaded)
    smaller = json.dumps({**PHI_2, "num_hidden_layers": 8}).encode()
    files = {"config.json": smaller, "tokenizer.json": b"{}"}
    hub.models[PHI] = Repository(files={**files, "model.safetensors": b"\x02" + b"\0" * 7 + b"{}"})

    inspect_base(loaded, lambda _text: None)

    assert (described(loaded) or {})["num_hidden_layers"] == 8
    assert gpu_bytes(loaded) < offline


def test_a_hub_that_never_answers_leaves_the_table(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the limit of one answer the plan goes on, and names the table as its source."""
    monkeypatch.setattr(hub_models, "ANSWER_S", 0.2)
    hub.awake.clear()
    messages: list[str] = []
    loaded = project(tmp_path, PHI)

    assert inspect_base(loaded, messages.append) is None
    assert "the hub was not asked whether you may have `microsoft/phi-2`" in messages[0]
    page = make_plan(str(loaded.path))
    assert (
        "base: `microsoft/phi-2` with the sizes of the shipped table (2.78 B parameters), since "
        "its config.json is not here"
    ) in " ".join("\n".join(page.lines()).split())
    assert page.to_json()["table_base"] == PHI
    assert page.estimate is not None


def test_a_copy_of_a_common_base_is_taken_for_it_by_name(
    tmp_path: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's own copy has the sizes of the base that its name says, and the line says so."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    messages: list[str] = []
    loaded = project(tmp_path, "someone/Llama-3.2-3B-of-mine")

    inspect_base(loaded, messages.append)

    found = table_base(loaded)
    assert found is not None
    assert "is taken for `meta-llama/Llama-3.2-3B` by its name" in found.line
    assert "did you mean" not in messages[0]
    row = find_by_id("meta-llama/Llama-3.2-3B")
    assert row is not None
    assert config_for_plan(loaded) == row.config
    assert described(loaded) is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("microsoft/ph-2", "microsoft/phi-2"),
        ("microsoft/phi2", "microsoft/phi-2"),
        ("phi-2", "microsoft/phi-2"),
        ("meta-llama/Llama-3.1-9B", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_a_misspelt_id_is_answered_with_the_one_that_was_meant(
    tmp_path: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    """Also without a network the note and the reason for no estimate name the right id."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    messages: list[str] = []
    loaded = project(tmp_path, typed)

    inspect_base(loaded, messages.append)

    assert f"did you mean `{meant}`?" in " ".join(messages)
    if table_base(loaded) is None:
        assert why_unknown(loaded).endswith(f"; did you mean `{meant}`?")


def test_an_unknown_base_has_no_sizes_and_no_guess(
    tmp_path: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base like none in the table stays unknown, with what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = project(tmp_path, "acme/ticket-sorter")

    assert table_base(loaded) is None
    assert estimate_run(loaded) is None
    assert did_you_mean("acme/ticket-sorter") == ""
    assert why_unknown(loaded) == (
        "unknown until the base's config.json lies here (`hf download` brings it)"
    )


def test_a_bare_name_is_a_base_only_where_the_hub_has_it(
    tmp_path: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gives `gpt2` without an owner, so a plan does; `phi-2` it does not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert table_base(project(tmp_path, "gpt2")) is not None
    assert table_base(project(tmp_path, "phi-2")) is None
