"""New tokens are one token each, and their rows are trained, saved, loaded and merged."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from pydantic import ValidationError
from safetensors.torch import load_file
from support import tiny
from support.adapters import logits, make
from support.models import load
from support.rig import Rig, outcome, restored, rig

from commands.runs.result_files import Expected
from trainer import model as models
from trainer.__main__ import main
from trainer.config import TrainerConfig, load_config
from trainer.device.shapes import read_shape
from trainer.errors import ConfigError
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.method_table import MethodKind, MethodTable
from trainer.results.export import export
from trainer.rundir.fingerprint import flatten_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
TOKENS = [f"<|mood{number}|>" for number in range(70)]  # more than the spare rows of the base
TEXT = f"a {TOKENS[0]} b{TOKENS[69]}"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("tiny", {"kind": "qlora"}),
    "untied": ("llama", {"kind": "qlora"}),
    "half": ("tiny", {"kind": "lora"}),
    "ranks": ("tiny", {"kind": "dylora"}),
}


@pytest.fixture(autouse=True)
def as_a_new_process() -> Iterator[None]:
    """Begin and leave without accelerate's settings of the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def lay_out(place: Path, architecture: str, *, half: bool = False, **method: Any) -> Path:
    """Write a run whose prompts have new tokens, around a random model, and return it."""
    base = place / "model"
    if not base.exists():
        base.mkdir(parents=True)
        tiny.make_model(base) if architecture == "tiny" else make(architecture, base)
    config = tiny.make_config(base, tiny.make_rows(place / "rows.jsonl", 20), method=method)
    config["model"]["new_tokens"] = TOKENS
    config["data"] |= {"prompt": "{text}" + TOKENS[0], "completion": "{mood}" + TOKENS[69]}
    config["train"] |= {"steps": 4, "precision": "bf16" if half else "auto"}
    return tiny.write_config(place / f"run-{len(list(place.iterdir()))}", config)


def base_of(run: Path) -> Any:
    """Load the base of a run as training does."""
    config = load_config(run / "config.json")
    cpu = torch.device("cpu")
    precision = models.device_precision(config.train, device=cpu, seq2seq=False)
    source = models.find_source(config.model, run)
    return models.load_base(source, config.method, precision=precision, device=cpu)


def rows_of(made: Rig) -> dict[str, torch.Tensor]:
    """Return the trained rows by the names of their parameters."""
    return {k: v.detach().clone() for k, v in made.state.parameters.items() if "lora_" not in k}


@pytest.mark.parametrize("name", sorted(CASES))
def test_rows_are_trained_kept_and_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    """Stopped and resumed, the bits are the same; loaded again, so is every logit."""
    architecture, method = CASES[name]
    half = name == "half"
    made = rig(lay_out(tmp_path, architecture, half=half, **method))
    before = rows_of(made)
    made.train(until=4)
    stopped = rig(lay_out(tmp_path, architecture, half=half, **method))
    stopped.train(until=2)
    stopped.save()
    resumed = restored(stopped.run_dir)
    resumed.train(until=4)
    (tmp_path / "adapter").mkdir()
    made.context.method.save(tmp_path / "adapter")
    found = logits(made.context.model, made)
    again = logits(models.load_adapter(base_of(made.run_dir), tmp_path / "adapter"), made)
    after = rows_of(made)
    sides = 2 if name == "untied" else 1

    assert outcome(resumed) == outcome(made)
    assert [value.shape for value in after.values()] == [(70, 32)] * sides
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert not any(torch.equal(value, before[key]) for key, value in after.items())
    assert torch.allclose(again, found, atol=1e-5)
    assert found.shape[-1] == 330  # 260 tokens of bytes, then 70; the base had 320 rows


def test_a_new_token_is_one_token_and_begins_at_the_mean(tmp_path: Path) -> None:
    """Of the rows that the base has for tokens of its own, not of those that it has to spare."""
    run = lay_out(tmp_path, "llama", kind="lora")
    plain = load(tmp_path / "model")
    grown = base_of(run)
    tokenizer = models.load_tokenizer(
        models.find_source(load_config(run / "config.json").model, run)
    )
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]

    assert len(ids) == len("a ") + 1 + len(" b") + 1
    assert (ids[2], ids[-1], tokenizer.decode(ids)) == (260, 329, TEXT)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        was, now = getattr(plain, side)().weight, getattr(grown, side)().weight
        assert torch.equal(now[:260], was[:260])
        assert torch.allclose(now[260:], was[:260].mean(dim=0).expand(70, -1))
        assert torch.equal(now[260], now[329])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a whole job on a tied base, its adapter and its tokenizer."""
    place = tmp_path_factory.mktemp("finished")
    AcceleratorState._reset_state(reset_partial_state=True)
    run_job(JobOptions(run_dir=lay_out(place, "tiny", kind="lora", r=2)), print)
    return place


def run_in(place: Path) -> Path:
    """Return the run directory of a place."""
    return next(path for path in place.iterdir() if path.name.startswith("run-"))


def test_the_tokenizer_comes_with_the_adapter_and_peft_loads_both(finished: Path) -> None:
    """On a base resized to the tokenizer, PEFT alone computes what was trained."""
    adapter = run_in(finished) / "adapter"
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    base = load(finished / "model")
    base.resize_token_embeddings(len(tokenizer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    ours = models.load_adapter(base_of(run_in(finished)), adapter)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]

    assert len(tokenizer) == 330
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


def test_merge_and_export_have_the_rows_and_the_tokenizer(finished: Path, tmp_path: Path) -> None:
    """The merged model is plain, with a larger embedding and its tokenizer (transformers#45127)."""
    adapter, out = run_in(finished) / "adapter", tmp_path / "merged"
    places = ["--base", str(finished / "model"), "--adapter", str(adapter), "--out", str(out)]
    assert main(["merge", *places]) == 0
    export(adapter, tmp_path / "exported")
    merged, tokenizer = load(out), transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    found = []
    for directory in (adapter, tmp_path / "exported"):
        model = models.load_adapter(base_of(run_in(finished)), directory)
        with torch.no_grad():
            found.append(model(input_ids=ids).logits)

    assert json.loads((out / "config.json").read_text())["vocab_size"] == 330
    assert len(tokenizer) == 330
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, found[0], atol=1e-5)
    assert torch.equal(*found)
    rows = load_file(adapter / "adapter_model.safetensors")
    assert [tuple(v.shape) for k, v in rows.items() if "trainable_tokens" in k] == [(70, 32)]


def test_a_laptop_takes_the_tokenizer_home(finished: Path) -> None:
    """Its files are among the names that a run with new tokens may send, and of no other run."""
    wanted = {path.name for path in (run_in(finished) / "adapter").iterdir()} - {"README.md"}
    method = MethodTable(kind=MethodKind.LORA)
    grown, plain = (
        Expected(method=method, tensor_bytes_max=1, steps_max=1, new_tokens=new)
        for new in (True, False)
    )

    assert wanted <= {*grown.adapter_names}
    assert "tokenizer.json" in wanted - {*plain.adapter_names}
    assert re.fullmatch(grown.results, "adapter/tokenizer.json")
    assert not re.fullmatch(plain.results, "adapter/tokenizer.json")


def test_the_plan_counts_the_copies_of_the_embedding() -> None:
    """PEFT writes the rows into a copy of the matrix in every pass, with a gradient of its size."""
    shape = read_shape(
        {
            "model_type": "llama", "hidden_size": 64, "vocab_size": 1000, "num_hidden_layers": 2,
            "intermediate_size": 128, "num_attention_heads": 4,
        }
    )  # fmt: skip
    less, more = (
        estimate(shape, TrainingSetup(tokens=32, new_tokens=new)).adapter for new in (False, True)
    )

    assert more - less == 3 * 64 * 1000 * 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "nola"}, "does not go with `method.kind: nola`"),
        ({"kind": "miss"}, "does not go with `method.kind: miss`"),
        ({"save": ["embed_tokens"]}, "does not go with `method.save`"),
        ({"from": "x"}, "does not go with `method.from`"),
    ],
)
def test_methods_without_single_rows_are_refused(method: dict[str, Any], words: str) -> None:
    """Before renting, with the reason."""
    config = tiny.make_config(Path("model"), Path("rows.jsonl"))
    config |= {"model": {"id": "model", "new_tokens": ["<|a|>"]}, "method": method}

    with pytest.raises(ValidationError, match=words):
        TrainerConfig.model_validate(config)


@pytest.mark.parametrize("tokens", [["<a>", "<a>"], [" a"], [""]])
def test_tokens_that_are_none_are_refused(tokens: list[str]) -> None:
    """Twice the same, with white space around it, or nothing."""
    config = tiny.make_config(Path("model"), Path("rows.jsonl"))
    config["model"] = {"id": "model", "new_tokens": tokens}

    with pytest.raises(ValidationError, match="new_tokens"):
        TrainerConfig.model_validate(config)


@pytest.mark.parametrize("architecture", ["t5", "phi"])
def test_bases_whose_rows_peft_cannot_train_are_refused(architecture: str, tmp_path: Path) -> None:
    """T5 has its embedding twice; Phi's head has a bias, which would be left out."""
    with pytest.raises(ConfigError, match=r"model\.new_tokens: the (embedding|head) of a "):
        rig(lay_out(tmp_path, architecture, kind="lora"))


def test_a_config_of_before_has_the_same_facts() -> None:
    """Without new tokens the key is in no facts, so that earlier runs go on."""
    config = TrainerConfig.model_validate(tiny.make_config(Path("model"), Path("rows.jsonl")))

    assert "model.new_tokens" not in flatten_config(config)
