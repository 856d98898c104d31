"""A merged model answers as base and adapter do together, and is a plain model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from support.models import PROMPTS, gpt2, load, make_adapter
from support.rig import rig
from support.tiny import make_model, make_run

from trainer import model as models
from trainer.__main__ import main
from trainer.adapters import methods
from trainer.results.base_weights import NoBaseError
from trainer.results.merge import CannotMergeError, merge, read_adapter
from trainer.results.merge_check import compare_models

# PEFT 0.21 asks transformers 5.23 by a name that the latter is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ["q_proj", "down_proj"]},
     {"modules_to_save": ["lm_head"], "target_modules": ["v_proj"]}],
    ids=["lora", "rslora", "dora", "named", "whole-module"],
)  # fmt: skip
def test_merged_equals_base_and_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    """For each method greedy answers are the same, and logits differ by rounding alone."""
    base = make_model(tmp_path / "base")
    if "modules_to_save" in settings:
        untie(base)
    adapted = make_adapter(base, tmp_path / "adapter", **settings)
    merge(base, tmp_path / "adapter", tmp_path / "out", dtype=None, on_message=lambda _: None)
    found = compare_models(adapted, load(tmp_path / "out"), PROMPTS, tokens_max=6, eos_id=1)
    untouched = compare_models(adapted, load(base), PROMPTS, tokens_max=6, eos_id=1)

    assert found["logits_difference_max"] < 1e-4
    assert (found["rows"], found["equal"], found["share"]) == (4, 4, 1.0)
    assert untouched["logits_difference_max"] > 0.01


@pytest.mark.parametrize("kind", ["qlora", "qdora"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
def test_an_adapter_of_quantised_transposed_layers_is_merged_the_right_way_round(
    kind: str, tmp_path: Path
) -> None:
    """Quantised layers of GPT-2 are not transposed, those of its 16-bit base are, square or not."""
    gpt2(tmp_path / "model")
    made = rig(make_run(tmp_path, rows=4, method={"kind": kind}, train={"max_length": 64}))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in models.trainable(made.context.model).items():
            parameter.add_(torch.randn_like(parameter) * (0.0 if "magnitude" in name else 0.1))
    assert len(list(models.four_bit_layers(made.context.model))) == 8
    (tmp_path / "adapter").mkdir()
    methods.method_of(made.context.model).save(tmp_path / "adapter")
    merge(
        tmp_path / "model",
        tmp_path / "adapter",
        tmp_path / "out",
        dtype=None,
        on_message=lambda _: None,
    )
    adapted = peft.PeftModel.from_pretrained(load(tmp_path / "model"), str(tmp_path / "adapter"))
    found = compare_models(adapted.eval(), load(tmp_path / "out"), PROMPTS, tokens_max=4, eos_id=1)

    assert found["share"] == 1.0
    assert found["logits_difference_max"] < 1e-4


def untie(base: Path) -> None:
    """Give the head of a model its own matrix."""
    model = load(base, tie_word_embeddings=False)
    model.config.tie_word_embeddings = False
    model.save_pretrained(str(base))


def test_shards_are_merged_one_by_one(tmp_path: Path) -> None:
    """A base in several files becomes a merged model in the same files."""
    base = make_model(tmp_path / "base", hidden=64)
    load(base).save_pretrained(str(tmp_path / "cut"), max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "cut" / name).write_bytes((base / name).read_bytes())
    adapted = make_adapter(base, tmp_path / "adapter")
    message: list[str] = []
    merge(
        tmp_path / "cut",
        tmp_path / "adapter",
        tmp_path / "out",
        dtype=None,
        on_message=message.append,
    )
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))

    assert len(files) > 2
    assert files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert message[-1] == f"shard {len(files)} of {len(files)} merged"
    assert (
        compare_models(adapted, load(tmp_path / "out"), PROMPTS, tokens_max=4, eos_id=1)["share"]
        == 1.0
    )
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_weights_may_be_written_in_another_type(tmp_path: Path) -> None:
    """In half precision the directory is half the size and says so in its config."""
    base = make_model(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    arguments = ["--base", str(base), "--adapter", str(tmp_path / "adapter")]

    assert main(["merge", *arguments, "--out", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert main(["merge", *arguments, "--out", str(tmp_path / "whole")]) == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    config = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float16"


def test_what_cannot_be_merged_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign base, half an adapter and a directory in use are refused by name."""
    base = make_model(tmp_path / "base")
    other = make_model(tmp_path / "other", layers=1)
    adapter = tmp_path / "adapter"
    make_adapter(base, adapter)
    with pytest.raises(CannotMergeError, match=r"the base has no place for model\.layers\.1"):
        merge(other, adapter, tmp_path / "out", dtype=None, on_message=lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "other"]

    with pytest.raises(CannotMergeError, match="exists already"):
        merge(base, adapter, other, dtype=None, on_message=lambda _: None)
    assert (
        main(["merge", "--base", str(base), "--adapter", str(other), "--out", str(tmp_path / "x")])
        == 78
    )
    assert "holds no adapter" in capsys.readouterr().err


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Only what is understood is merged."""
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}', encoding="utf-8")
    with pytest.raises(CannotMergeError, match="the kind VERA cannot be merged"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter/adapter_model.safetensors", "half", "adapter holds no whole adapter: "),
        ("adapter/adapter_config.json", "{", "adapter holds no whole adapter: "),
        ("adapter/adapter_config.json", "[]", "the kind None cannot be merged"),
        ("adapter/adapter_config.json", '{"peft_type": "LORA"}', "has no `lora_alpha`"),
        ("base/config.json", "{", "config.json cannot be read: "),
    ],
)
def test_damaged_files_are_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    """An adapter or base that was cut short or spoilt ends a merge in a sentence."""
    from safetensors.torch import save_file

    for place, file in (("base", "model"), ("adapter", "adapter_model")):
        (tmp_path / place).mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / place / f"{file}.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    settings = '{"peft_type": "LORA", "r": 1, "lora_alpha": 1}'
    (tmp_path / "adapter" / "adapter_config.json").write_text(settings)
    (tmp_path / name).write_text(content)
    arguments = ["--base", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]

    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 78
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
def test_a_base_with_shorter_names_and_transposed_layers_is_merged(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """GPT-2 lies on the hub without `transformer.` before its names, and fits all the same."""
    base = tmp_path / "base"
    gpt2(base).transformer.save_pretrained(str(base))
    named = {"target_modules": ["c_attn", "c_proj", "c_fc"]}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["GPT2LMHeadModel"]
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    adapted = make_adapter(base, tmp_path / "adapter", **named, **settings)
    changed = merge(
        base, tmp_path / "adapter", tmp_path / "out", dtype=None, on_message=lambda _: None
    )
    found = compare_models(adapted, load(tmp_path / "out"), PROMPTS, tokens_max=6, eos_id=1)

    assert changed == 8
    assert found["share"] == 1.0
    assert found["logits_difference_max"] < 1e-4


@pytest.mark.parametrize("shards", [1, 2])
def test_a_base_of_older_files_becomes_safetensors(shards: int, tmp_path: Path) -> None:
    """Pickled tensors, tied ones too, are merged into safetensors that transformers loads."""
    base = make_model(tmp_path / "base")
    adapted = make_adapter(base, tmp_path / "adapter")
    tensors = dict(load(base).state_dict())
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [names[at::shards] for at in range(shards)]
    files = [f"pytorch_model-{at}-of-2.bin" for at in range(2)][:shards]
    files = ["pytorch_model.bin"] if shards == 1 else files
    for file, part in zip(files, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, base / file)
    where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = json.dumps({"metadata": {}, "weight_map": where})
    if shards > 1:
        (base / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    merge(base, tmp_path / "adapter", tmp_path / "out", dtype=None, on_message=lambda _: None)

    assert not list((tmp_path / "out").glob("*.bin*"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == shards
    assert (
        compare_models(adapted, load(tmp_path / "out"), PROMPTS, tokens_max=4, eos_id=1)["share"]
        == 1.0
    )


def test_a_pickle_with_anything_but_tensors_is_not_run(tmp_path: Path) -> None:
    """A file that would run a program when unpickled is refused, and the program does not run."""
    base = make_model(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    (base / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"x": Trap()}, base / "pytorch_model.bin")
    with pytest.raises(NoBaseError, match="cannot be read"):
        merge(base, tmp_path / "adapter", tmp_path / "out", dtype=None, on_message=lambda _: None)
    assert not (tmp_path / "ran").exists()


def test_a_packed_base_is_refused(tmp_path: Path) -> None:
    """A base whose matrices were packed into bytes cannot take an adapter, and it is said."""
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    packed = {name: value.flatten().to(torch.uint8)[:, None] for name, value in tensors.items()}
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotMergeError, match="merge into the 16-bit base, not a packed one"):
        merge(base, tmp_path / "adapter", tmp_path / "out", dtype=None, on_message=lambda _: None)
    assert not (tmp_path / "out").exists()
