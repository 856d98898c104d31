"""A base without a formula is counted where torch is; elsewhere it is not known, with a remedy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.empty_models import build_empty, count

from commands.runs import base_shape
from commands.runs.config import load
from commands.runs.extras import Lack
from commands.runs.planning import estimates
from commands.runs.planning.make_page import make_plan
from trainer.__main__ import main
from trainer.device.count import count_shape, find_shape
from trainer.device.shapes import SUPPORTED, Shape, UnknownShapeError, read_shape

DENSE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "pad_token_id": 0,
}  # fmt: skip
GEMMA_3N = {
    **DENSE, "head_dim": 16, "intermediate_size": [96] * 4, "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
PIXTRAL = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "patch_size": 14,
           "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}  # fmt: skip
UNFORMULATED: list[tuple[str, dict[str, Any]]] = [
    ("gemma3n_text", GEMMA_3N),
    ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 160}),
    ("nemotron", DENSE),
    ("ernie4_5_moe", {**DENSE, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48,
                      "moe_layer_start_index": 1, "moe_layer_end_index": 3}),
    ("jamba", {**DENSE, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8,
               "mamba_dt_rank": 8, "attn_layer_period": 2, "attn_layer_offset": 1}),
    ("bart", {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 160,
              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
              "decoder_ffn_dim": 96, "max_position_embeddings": 32}),
    ("mistral3", {"text_config": {**DENSE, "model_type": "mistral"}, "vision_config": PIXTRAL}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config"), UNFORMULATED, ids=[kind for kind, _ in UNFORMULATED])
def test_the_count_of_an_architecture_without_a_formula(kind: str, config: dict[str, Any]) -> None:
    """Parameters of linear layers, experts, embeddings and in all are those of the model."""
    described = {"model_type": kind, **config}
    shape, truth = find_shape(described), count(build_empty(described))

    assert kind not in SUPPORTED
    assert shape.linear_parameters == truth.linear
    assert shape.expert_parameters == truth.experts
    assert shape.embedding_parameters == truth.embeddings
    assert shape.parameters == truth.total
    assert Shape.from_plain(json.loads(json.dumps(shape.to_plain()))) == shape


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", **DENSE},
        {"model_type": "mixtral", **DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"model_type": "gemma3", "text_config": {**DENSE, "model_type": "gemma3_text"}},
        {"model_type": "qwen3_vl", "text_config": DENSE},
    ],
    ids=lambda config: str(config["model_type"]),
)
def test_count_and_formula_agree_on_what_a_text_passes(config: dict[str, Any]) -> None:
    """Both tell the same layers apart: those of the text, the tower's, and the chosen experts."""
    by_count, by_formula = count_shape(config), read_shape(config)

    assert by_count.parameters == by_formula.parameters
    assert by_count.active_parameters == by_formula.active_parameters
    assert by_count.expert_parameters == by_formula.expert_parameters
    for one, other in zip(by_count.text_blocks, by_formula.text_blocks, strict=True):
        assert (one.count, one.queries, one.keys) == (other.count, other.queries, other.keys)
        assert one.feed_forward == other.feed_forward


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "made-up", **DENSE}, "does not know a `made-up` model"),
        ({"model_type": 5}, "does not know this model"),
        ({"model_type": "nemotron", **DENSE, "hidden_size": "wide"}, "cannot be built here"),
        ({"model_type": "nemotron", **DENSE, "num_hidden_layers": 10**6}, "1000000"),
        ({"model_type": "nemotron", **DENSE, "vocab_size": 10**12}, "which is no size"),
        ({"model_type": "nemotron", "hidden_size": None}, "cannot be built here"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(config: dict[str, Any], reason: str) -> None:
    """An architecture that transformers lacks, or values that are no sizes, end in one sentence."""
    with pytest.raises(UnknownShapeError, match=reason):
        count_shape(config)


def test_no_code_of_a_repository_is_run_to_count(tmp_path: Path) -> None:
    """A config that names modules of its own is counted as transformers has it, or not at all."""
    trap = tmp_path / "modeling_evil.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    names = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    shape = count_shape({"model_type": "nemotron", **DENSE, "auto_map": names})
    with pytest.raises(UnknownShapeError):
        count_shape({"model_type": "evil", **DENSE, "auto_map": names})

    assert shape.parameters > 0
    assert not (tmp_path / "ran").exists()


def test_the_program_prints_a_shape_or_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m trainer shape` ends with 0 and JSON, or with 78 and the reason."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "nemotron", **DENSE}))
    assert main(["shape", "--config", str(config)]) == 0
    shape = Shape.from_plain(json.loads(capsys.readouterr().out))
    config.write_text("[1, 2]")
    assert main(["shape", "--config", str(config)]) == 78

    assert shape.kind == "nemotron"
    assert "describes no model" in capsys.readouterr().err


def test_without_torch_a_base_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be counted, the reason ends with the command that installs what can."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path))
    lack = Lack(package="torch", extra="train", problem="is not installed")
    monkeypatch.setattr(base_shape, "missing", lambda _packages: [lack])

    with pytest.raises(UnknownShapeError, match=r"install .*\[train\].* counted on this computer"):
        base_shape.base_shape({"model_type": "nemotron", **DENSE})
    assert base_shape.base_shape({"model_type": "llama", **DENSE}).parameters > 0


def project(folder: Path, config: dict[str, Any]) -> Path:
    """Write a run.yaml for a T4 with rows and the description of a base; return it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "train.jsonl").write_text('{"text": "fine weather", "label": "good"}\n' * 20)
    (folder / "run.yaml").write_text(
        "name: tiny\nvm: {provider: local, gpu: T4, max_price: 0.25}\nmodel: {id: model}\n"
        "method: {kind: qlora, r: 8, alpha: 16, targets: all-linear}\n"
        "data: {train: train.jsonl, prompt: '{text}', completion: '{label}'}\n"
        "train: {steps: 50, batch_size: 8, max_length: 512}\n"
    )
    return folder / "run.yaml"


def test_a_plan_counts_once_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3n's widths in a list get figures where torch is here, from one count for all plans."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(estimates, "DRIVER", tmp_path / "no driver")
    config = {"model_type": "gemma3n_text", **GEMMA_3N}
    page = make_plan(str(project(tmp_path / "project", config)))
    base_shape._counted.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    again = estimates.estimate_run(load(tmp_path / "project" / "run.yaml"))

    assert page.estimate is not None
    assert page.estimate["parameters"] == count(build_empty(config)).total
    assert again is not None
    assert again["parameters"] == page.estimate["parameters"]
    assert len(list((tmp_path / "home" / "cache" / "shapes").iterdir())) == 1


def test_a_plan_without_figures_has_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan goes on without figures, names the kind, and keeps the reason in its JSON."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    page = make_plan(str(project(tmp_path / "project", {"model_type": "made-up", **DENSE})))

    assert page.estimate is None
    assert "not known: " in page.to_json()["forecast_problem"]
    assert any("does not know a `made-up` model" in line for line in page.lines(1000))


def test_a_plan_of_a_mixture_is_no_fit_for_a_t4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3-30B-A3B needs more than 16 GB for its experts in 4 bits alone (bitsandbytes#1849)."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "tie_word_embeddings": False, "max_position_embeddings": 40960,
    }  # fmt: skip
    page = make_plan(str(project(tmp_path / "project", config)))

    assert page.estimate is not None
    assert page.estimate["memory_bytes"]["base"] > 16e9
    assert any("does NOT fit a T4" in line for line in page.lines(1000))
