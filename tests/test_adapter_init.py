"""The first weights of an adapter: what PEFT has for the base, through resume, merge and PEFT.

What does not go with a base is refused on the laptop, before anything is rented.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from pydantic import ValidationError
from support import tiny
from support.adapters import fresh_base, logits, plain_peft
from support.mixtures import make_mixture
from support.models import load
from support.rig import Rig, outcome, restored, rig

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters.parent import read_parent
from trainer.config import TrainerConfig
from trainer.errors import ConfigError
from trainer.method_table import AdapterInit, MethodTable
from trainer.results.export import export
from trainer.rundir.fingerprint import flatten_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "qlora", "init": "pissa"}, "`init: pissa` needs .* unquantised .* `kind: lora`"),
        (
            {"kind": "qlora", "init": "olora"},
            "`init: olora` needs .* unquantised .* `quant` is nf4",
        ),
        ({"kind": "rslora", "quant": "int8", "init": "pissa"}, "and `quant` is int8"),
        ({"kind": "qlora", "init": "orthogonal"}, "`init: orthogonal` needs .* `init: gaussian`"),
        ({"kind": "qlora", "init": "corda"}, "`init: corda` needs a pass over the data"),
        ({"kind": "lora", "init": "corda"}, "`init: corda` needs a pass over the data"),
        ({"kind": "lora", "init": "eva"}, "`init: eva` needs a pass over the data"),
        ({"kind": "lora", "init": "lora_ga"}, "`init: lora_ga` needs a pass over the data"),
        ({"kind": "qlora", "init": "loftq"}, "`init: loftq` quantises the base by itself"),
        ({"kind": "dora", "init": "pissa"}, "does not go with `kind: dora`"),
        ({"kind": "dylora", "init": "orthogonal"}, "does not go with `kind: dylora`"),
        ({"kind": "nola", "init": "gaussian"}, "does not go with `kind: nola`"),
        ({"kind": "lora", "r": 5, "init": "orthogonal"}, "an even rank, and `r` is 5"),
        ({"kind": "lora", "r": 513, "init": "olora"}, "twice the rank, .* 1024; `r` is 513"),
        ({"from": "x", "init": "gaussian"}, "the adapter in `from` has its weights already"),
        ({"init": "kaiming"}, "Input should be 'default', 'gaussian'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(method: dict[str, Any], words: str) -> None:
    """The message says what it lacks and what to take instead; nothing is loaded for it."""
    with pytest.raises(ValidationError, match=words):
        MethodTable.model_validate(method)


@pytest.mark.parametrize("init", ["pissa", "corda"])
def test_pefts_own_refusal_is_the_reason(init: str, tmp_path: Path) -> None:
    """PEFT decomposes no packed weights: what is refused here would be a traceback there."""
    run = tiny.make_run(tmp_path, method={"kind": "qlora", "dropout": 0.0})
    extra = {"corda_config": CordaConfig()} if init == "corda" else {}
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=init, **extra)

    with pytest.raises(TypeError, match="under float32, float16, or bfloat16"):
        peft.get_peft_model(fresh_base(rig(run)), config)


def lay_out(place: Path, **method: Any) -> Path:
    """Write a run of the tiny model with these first weights, and return its directory."""
    wanted = {"kind": "lora", "dropout": 0.0} | method
    return tiny.make_run(place, method=wanted, train={"steps": 6})


def saved(made: Rig, directory: Path) -> Path:
    """Write the adapter as a job does at its end."""
    directory.mkdir()
    made.context.method.save(directory)
    return directory


@pytest.fixture(scope="module", params=["pissa", "olora", "pissa rslora", "orthogonal", "gaussian"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A finished training of six steps; one on four bits where the first weights allow it."""
    init, _, kind = request.param.partition(" ")
    kind = kind or ("qlora" if init == "gaussian" else "lora")
    place = tmp_path_factory.mktemp(init)
    made = rig(lay_out(place, init=init, kind=kind))
    first = logits(made.context.model, made)
    base = fresh_base(made)
    assert torch.allclose(first, logits(base, made), atol=1e-5)  # at the start, it is the base
    made.train(until=6)
    return made


def test_stopped_and_resumed_the_bits_are_the_same(trained: Rig, tmp_path: Path) -> None:
    """The residual of the base is in no checkpoint: a new start makes the very same one."""
    config = (trained.run_dir / "config.json").read_text()
    run = tiny.write_config(tmp_path / "run", json.loads(config))
    for stop in (2, 5):
        made = restored(run)
        made.train(until=stop)
        made.save()
    last = restored(run)
    last.train(until=6)

    assert outcome(last) == outcome(trained)


def test_the_adapter_is_one_of_the_original_base(trained: Rig, tmp_path: Path) -> None:
    """PEFT, inference, export and a merge compute on that base what was trained."""
    found = logits(trained.context.model, trained)
    adapter = saved(trained, tmp_path / "adapter")
    export(adapter, tmp_path / "exported")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    init = trained.context.method._method.init
    ours = logits(models.load_adapter(fresh_base(trained), adapter), trained)

    assert settings["r"] == (8 if init.changes_base else 4)
    assert read_parent(adapter).rank == settings["r"]  # so a later training can go on from it
    assert torch.allclose(ours, found, atol=1e-5)
    assert torch.allclose(logits(plain_peft(trained, adapter), trained), found, atol=1e-5)
    assert torch.allclose(
        logits(plain_peft(trained, tmp_path / "exported"), trained), found, atol=1e-5
    )
    if init is not AdapterInit.GAUSSIAN:  # its base is in four bits here
        base = trained.run_dir.parent / "model"
        places = ["--base", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "m")]
        assert main(["merge", *places]) == 0
        merged = logits(load(tmp_path / "m"), trained)
        assert torch.allclose(merged, found, atol=1e-5)
        assert (merged - logits(load(base), trained)).abs().max() > 0.1


def test_more_parts_than_a_weight_has_are_refused(tmp_path: Path) -> None:
    """PEFT would make smaller matrices, and save settings that do not fit them."""
    run = lay_out(tmp_path, init="pissa", r=20)

    with pytest.raises(ConfigError, match=r"takes 20 parts .*k_proj has 16; set `r` to 16"):
        rig(run)


def test_experts_have_the_usual_first_weights_only(tmp_path: Path) -> None:
    """PEFT reads `init_lora_weights` for layers; tensors of experts would begin otherwise."""
    base = make_mixture(tmp_path / "model")
    rows = tiny.make_rows(tmp_path / "rows.jsonl", 9)
    config = tiny.make_config(base, rows, method={"kind": "lora", "init": "pissa", "dropout": 0.0})

    with pytest.raises(ConfigError, match=r"method\.init: pissa cannot be had for .*gate_up_proj"):
        rig(tiny.write_config(tmp_path / "run", config))


def test_a_config_of_before_has_the_same_facts() -> None:
    """At its default the key is in no facts, so that earlier runs go on."""
    config = TrainerConfig.model_validate(tiny.make_config(Path("model"), Path("rows.jsonl")))

    assert "method.init" not in flatten_config(config)
