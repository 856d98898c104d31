"""An adapter that came home is read as a stranger's: its settings load nothing but a plain LoRA."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest

from trainer.__main__ import main
from trainer.adapters.settings import AdapterSettings, read_settings
from trainer.errors import ConfigError
from trainer.model import load_adapter

HONEST: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
    "use_dora": False,
    "base_model_name_or_path": "../model",
    "megatron_core": "megatron.core",
    "megatron_config": None,
    "init_lora_weights": True,
}


def written(folder: Path, **changes: Any) -> Path:
    """Write an `adapter_config.json` that differs in some settings."""
    (folder / "adapter_config.json").write_text(json.dumps(HONEST | changes), encoding="utf-8")
    return folder


def test_the_settings_of_a_training_are_kept(tmp_path: Path) -> None:
    """Those that a LoRA needs, and no others: PEFT's own names of modules are left behind."""
    found = read_settings(written(tmp_path))

    assert found == AdapterSettings(
        r=4,
        lora_alpha=8,
        target_modules=("q_proj", "v_proj"),
        task_type="CAUSAL_LM",
        lora_dropout=0.1,
        base_model_name_or_path="../model",
    )
    assert "megatron_core" not in found.to_json()
    assert read_settings_again(tmp_path, found) == found


def read_settings_again(folder: Path, found: AdapterSettings) -> AdapterSettings:
    """Write the settings as an export does, and read that."""
    (folder / "adapter_config.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    return read_settings(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_mapping", {"base_model_class": "Popen", "parent_library": "subprocess"}),
        ("megatron_config", {"a": 1}),
        ("runtime_config", {"a": 1}),
        ("layer_replication", [[0, 4]]),
        ("rank_pattern", {"q_proj": 10**6}),
        ("modules_to_save", ["(a+)+$"]),
        ("modules_to_save", {"lm_head": 1}),
        ("ensure_weight_tying", "yes"),
        ("peft_type", "IA3"),
        ("peft_type", ["LORA"]),
        ("task_type", "FEATURE_EXTRACTION"),
        ("task_type", {}),
        ("r", 0),
        ("r", True),
        ("r", "4"),
        ("r", 10**30),
        ("r", 2000),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("lora_alpha", -1),
        ("lora_dropout", 2),
        ("target_modules", ".*"),
        ("target_modules", []),
        ("target_modules", ["(a+)+$"]),
        ("target_modules", ["a\x1b[2J"]),
        ("target_modules", {"a": 1}),
        ("use_dora", "yes"),
    ],
)
def test_a_key_that_no_training_writes_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    """What names code, changes the shape of the adapter or is of a wrong type."""
    with pytest.raises(ConfigError, match=f"`{key}`") as caught:
        read_settings(written(tmp_path, **{key: value}))

    assert str(caught.value).replace("\n", " ").isprintable()


class Payload:
    """What executes when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_a_pickled_adapter_is_not_loaded(tmp_path: Path) -> None:
    """PEFT would take the older format where the newer is missing."""
    written(tmp_path)
    marker = tmp_path / "executed"
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ConfigError, match=r"there is no adapter_model\.safetensors"):
        load_adapter(cast("Any", object()), tmp_path)

    assert not marker.exists()


RESULT: dict[str, Any] = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}


@pytest.mark.parametrize(
    "result",
    [
        RESULT,
        {**RESULT, "details": 5},
        {**RESULT, "details": {"labels": "x", "bound": [], "baselines": [1]}},
        {"value": "<script>alert(1)</script>"},
    ],
)
@pytest.mark.parametrize("status", [None, 5, {"exact": "<script>"}])
def test_a_report_of_strange_results_is_a_page_with_a_sentence(
    tmp_path: Path, result: dict[str, Any], status: object
) -> None:
    """Scores and receipts of another build cost their section, and inject nothing."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "<script>"}\n', encoding="utf-8")
    (tmp_path / "eval-after.json").write_text(json.dumps(result), encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    receipt = {"status": status, "best": {"step": "<script>", "loss": []}}
    (tmp_path / "adapter" / "qft.json").write_text(json.dumps(receipt), encoding="utf-8")
    assert main(["report", "--run-dir", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert "cannot be shown: what came home is not as a training here writes it" in page
    assert "<script>alert" not in page
    assert page.count("<script>") == 1, "the page's own script, and no other"


@pytest.mark.parametrize("line", ["[1]", '{"step": "1"}', '{"step": 1', "[" * 100_000, "\x00"])
def test_a_report_of_a_strange_log_says_which_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """It ends as bad data do, and no traceback is shown."""
    text = f'{{"step": 1, "loss": 1.0}}\n{line}\n'
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")

    assert main(["report", "--run-dir", str(tmp_path)]) == 65
    assert "metrics.jsonl: line 2" in capsys.readouterr().err
