"""MiSS on an unquantised base: PEFT trains it, and it resumes, merges and loads like all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from support import tiny
from support.adapters import fresh_base, logits, plain_peft
from support.mixtures import make_mixture
from support.models import gpt2, load
from support.rig import Rig, outcome, outcome_tensors, restored, rig

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters.settings import read_settings
from trainer.device.shapes import read_shape
from trainer.errors import ConfigError
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters
from trainer.method_table import MethodTable
from trainer.results.export import export

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
MISS: dict[str, Any] = {"kind": "miss", "r": 5, "alpha": 16, "dropout": 0.1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A finished training of six steps; five is no divisor of the 32 inputs of a layer."""
    made = rig(tiny.make_run(tmp_path_factory.mktemp("miss"), method=MISS, train={"steps": 6}))
    made.train(until=6)
    return made


@pytest.fixture(scope="module")
def adapter(trained: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its adapter, as a job writes it at its end."""
    directory = tmp_path_factory.mktemp("adapter")
    trained.context.method.save(directory)
    return directory


def test_stopped_and_resumed_the_bits_are_the_same(trained: Rig, tmp_path: Path) -> None:
    """Dropout included, after any step."""
    text = (trained.run_dir / "config.json").read_text()
    run = tiny.write_config(tmp_path / "run", json.loads(text))
    for stop in (1, 4):
        made = restored(run)
        made.train(until=stop)
        made.save()
    last = restored(run)
    last.train(until=6)

    assert outcome(last) == outcome(trained)


def test_it_loads_merges_and_exports_to_what_was_trained(
    trained: Rig, adapter: Path, tmp_path: Path
) -> None:
    """For inference here, with PEFT alone, as an export and as a merged model."""
    found = logits(trained.context.model, trained)
    export(adapter, tmp_path / "exported")
    base = trained.run_dir.parent / "model"
    places = ["--base", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "merged")]

    assert main(["merge", *places]) == 0
    assert torch.equal(logits(models.load_adapter(fresh_base(trained), adapter), trained), found)
    assert torch.equal(logits(plain_peft(trained, adapter), trained), found)
    assert torch.equal(logits(plain_peft(trained, tmp_path / "exported"), trained), found)
    merged = logits(load(tmp_path / "merged"), trained)
    assert torch.allclose(merged, found, atol=1e-5)
    assert (merged - logits(load(base), trained)).abs().max() > 0.1


def test_a_training_goes_on_from_it(trained: Rig, adapter: Path, tmp_path: Path) -> None:
    """Rank, layers and kind are the adapter's, whether ours or PEFT's."""
    config = json.loads((trained.run_dir / "config.json").read_text())
    config["method"] = {"from": str(adapter), "dropout": 0.1, "kind": "miss"}
    second = rig(tiny.write_config(tmp_path / "run", config))

    assert outcome_tensors(second) == outcome_tensors(trained)
    config["method"]["kind"] = "lora"
    with pytest.raises(ConfigError, match=r"lora is given, .* `method\.from` is miss"):
        rig(tiny.write_config(tmp_path / "other", config))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"quant": "nf4"}, "an unquantised base only, and `quant` is nf4; take `kind: qlora`"),
        ({"quant": "int8"}, "an unquantised base only, and `quant` is int8"),
        ({"alpha": 8}, "`alpha` does not go with `kind: miss`"),
        ({"save": ["lm_head"]}, "`save` does not go with `kind: miss`"),
        ({"init": "pissa"}, "`init: pissa` does not go with `kind: miss`"),
    ],
)
def test_what_it_has_none_of_is_refused_by_name(method: dict[str, Any], words: str) -> None:
    """Before renting, with what to take instead."""
    with pytest.raises(ValidationError, match=words):
        MethodTable.model_validate({"kind": "miss", **method})


def test_layers_that_peft_has_no_miss_for_are_refused(tmp_path: Path) -> None:
    """GPT-2's are transposed; a mixture's experts are no layers; narrow ones cannot be summed."""
    for name in ("gpt2", "mixture"):
        base = tmp_path / name
        gpt2(base) if name == "gpt2" else make_mixture(base)
        rows = tiny.make_rows(tmp_path / "rows.jsonl", 9)
        config = tiny.make_config(base, rows, method={**MISS, "dropout": 0.0})
        with pytest.raises(ConfigError, match=r"has no MiSS for .*Conv1D|miss cannot adapt the ex"):
            rig(tiny.write_config(tmp_path / f"run-{name}", config))
    wide = tiny.make_run(tmp_path / "tiny", method={**MISS, "r": 40})
    with pytest.raises(ConfigError, match="has 32 inputs, and MiSS needs at least `r`"):
        rig(wide)


@pytest.mark.parametrize(("key", "value"), [("init_weights", "bat"), ("init_weights", "mini")])
def test_other_kinds_of_miss_are_refused(
    adapter: Path, tmp_path: Path, key: str, value: object
) -> None:
    """PEFT's other two have matrices of another shape."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, key: value}))

    with pytest.raises(ConfigError, match=f"`{key}`"):
        read_settings(tmp_path)


def test_the_plan_counts_what_is_trained(adapter: Path) -> None:
    """The tensors of the file are the reference: r numbers for each row of a layer."""
    described = json.loads((adapter / "adapter_config.json").read_text())
    counted = sum(
        tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values()
    )
    shape = read_shape(
        {
            "model_type": "llama", "hidden_size": 32, "vocab_size": 320, "num_hidden_layers": 2,
            "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        }
    )  # fmt: skip

    assert described["peft_type"] == "MISS"
    assert adapter_parameters(shape, TrainingSetup(tokens=8, r=5, miss=True)) == counted
