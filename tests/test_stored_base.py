"""A stored quantised base has the bits that quantising gives, or is not used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models as made_models
from support import tiny
from support.faulty_disk import Died, DyingDisk, FailingDisk
from support.mixtures import make_mixture
from support.models import make_falcon
from support.multimodal import make_multimodal

from trainer import model as models
from trainer.adapters.stored_base import StoredBase, folder_name, store_folder
from trainer.adapters.stored_files import BaseFolder, NotStorable, NotWhole, Stopped
from trainer.atomic import Disk, RealDisk
from trainer.config import PrecisionChoice
from trainer.device.precision import Precision
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.method_table import MethodTable

CPU = torch.device("cpu")
IDS = torch.arange(4, 16)[None]
ENOSPC = 28

Makers = dict[str, Callable[[Path], object]]
MAKERS: Makers = {
    "llama": tiny.make_model,
    "falcon": make_falcon,
    "gpt2": made_models.gpt2,
    "t5": made_models.t5,
    "qwen3_moe": make_mixture,
    "gpt_oss": lambda place: make_mixture(place, "gpt_oss"),
    "deepseek_v3": lambda place: make_mixture(place, "deepseek_v3"),
    "gemma3": lambda place: make_multimodal(place, "gemma3"),
    "qwen2_5_vl": lambda place: make_multimodal(place, "qwen2_5_vl"),
    "llama4": lambda place: make_multimodal(place, "llama4"),
}


def folder_at(root: Path, disk: Disk | None = None, **more: Any) -> BaseFolder:
    """Return a store with room, which takes also small bases."""
    settings: dict[str, Any] = {"free_bytes": lambda _: 1 << 40, "size_least": 0} | more
    return BaseFolder(root=root, disk=disk or RealDisk(), **settings)


def load(place: Path, method: dict[str, Any], stored: StoredBase | None, **more: Any) -> Any:
    """Load a base as a job does, on the processor."""
    compute = more.pop("compute", PrecisionChoice.FP32)
    return models.load_base(
        models.Source(name=str(place), revision=None, trust_remote_code=False, **more),
        MethodTable.model_validate({"kind": "qlora", **method}),
        precision=Precision(compute=compute, autocast=False, loss_scaling=False, reason=""),
        device=CPU,
        stored=stored,
    )


def store(place: Path, method: dict[str, Any], folder: BaseFolder, **more: Any) -> list[str]:
    """Load a base, let it be stored, and return what was reported."""
    messages: list[str] = []
    stored = StoredBase(folder=folder, name="base", on_message=messages.append)
    load(place, method, stored, **more)
    stored.begin_writing()
    stored.wait()
    return messages


def state_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield all that a loaded model is: types, flags, settings of quantisers, every tensor."""
    yield "conversions", [type(one).__name__ for one in getattr(model, "_weight_conversions", [])]
    yield "flags", [getattr(model, name, None) for name in ("is_loaded_in_4bit", "training")]
    for path, module in model.named_modules():
        yield path, type(module).__name__
        if (state := getattr(module, "quant_state", None)) is not None:
            yield f"{path} state", state
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        yield name, tensor
        yield f"{name} kind", (type(tensor), tensor.dtype, tensor.stride(), tensor.requires_grad)
        for key, value in sorted(vars(tensor).items()):
            if key != "module":
                yield f"{name} {key}", value
    yield "names", sorted(model.state_dict())


def same(one: Any, other: Any) -> bool:
    """Tell whether two values have the same bits, also inside bitsandbytes' own objects."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one).__name__ == "QuantState":
        left, right = one.as_dict(), other.as_dict()
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(one == other)


def logits(model: Any) -> torch.Tensor:
    """Return what a model says after a few tokens."""
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, **more).logits
    return found


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, {"quant": "nf4"}) for family in MAKERS),
        ("llama", {"quant": "nf4", "double_quant": False}),
        ("llama", {"quant": "fp4"}),
        ("qwen3_moe", {"quant": "fp4", "double_quant": False}),
        ("llama", {"quant": "int8"}),
        ("falcon", {"quant": "int8"}),
        ("gpt2", {"quant": "int8"}),
    ],
)
def test_a_stored_base_equals_the_quantised_one(
    tmp_path: Path, family: str, method: dict[str, Any]
) -> None:
    """Every architecture and storage: tensors, scales, ties, types, flags and logits are equal."""
    MAKERS[family](tmp_path / "model")
    folder = folder_at(tmp_path / "store")
    store(tmp_path / "model", method, folder)
    messages: list[str] = []
    plain = load(tmp_path / "model", method, None)
    found = load(
        tmp_path / "model", method, StoredBase(
            folder=folder, name="base", on_message=messages.append
        ),
    )  # fmt: skip
    expected, is_now = dict(state_of(plain)), dict(state_of(found))

    assert messages == ["the quantised base is read from this machine's disk: 0.00 GB"]
    assert expected.keys() == is_now.keys()
    assert [key for key in expected if not same(expected[key], is_now[key])] == []
    assert torch.equal(logits(plain), logits(found))


def test_new_tokens_are_added_to_a_stored_base_as_to_a_quantised_one(tmp_path: Path) -> None:
    """What is stored is the base without them, so that runs with other tokens share it."""
    place, folder = tiny.make_model(tmp_path / "model"), folder_at(tmp_path / "store")
    store(place, {}, folder, new_tokens=("<one>",))
    messages: list[str] = []
    again = StoredBase(folder=folder, name="base", on_message=messages.append)
    plain = load(place, {}, None, new_tokens=("<two>", "<three>"))
    found = load(place, {}, again, new_tokens=("<two>", "<three>"))

    assert "read from this machine's disk" in messages[0]
    assert torch.equal(logits(plain), logits(found))


def train(run: Path) -> list[str]:
    """Do a whole job in this process and return its messages."""
    messages: list[str] = []
    run_job(JobOptions(run_dir=run), messages.append)
    return messages


def test_a_second_start_of_a_job_reads_the_stored_base_and_trains_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stores it, another run on this machine reads it, and both adapters are equal."""
    folder = folder_at(tmp_path / "store")
    monkeypatch.setattr("trainer.job.store_base.machine_folder", lambda: folder)
    table = {"kind": "qlora"}
    first = tiny.make_run(tmp_path, rows=4, method=table, train={"steps": 2})
    second = tmp_path / "second"
    second.mkdir()
    (second / "config.json").write_bytes((first / "config.json").read_bytes())
    messages = [train(first), train(second)]
    stored = [[line for line in lines if "quantised base" in line] for lines in messages]
    names = [path.name for path in folder.root.iterdir()]

    assert [len(lines) for lines in stored] == [1, 1]
    assert "is stored on this machine" in stored[0][0]
    assert "is read from this machine's disk" in stored[1][0]
    assert len(names) == 1
    assert names[0].startswith("model-")
    weights = [run / "adapter" / "adapter_model.safetensors" for run in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_base_that_is_not_quantised_here_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits or more it is read as fast from its own files."""
    monkeypatch.setattr("trainer.job.store_base.machine_folder", lambda: pytest.fail("asked for"))

    assert train(tiny.make_run(tmp_path, rows=4, train={"steps": 1}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base, and beside it a store that has it."""
    root = tmp_path_factory.mktemp("llama")
    tiny.make_model(root / "model")
    store(root / "model", {}, folder_at(root / "store"))
    return root


def copy_of(llama: Path, tmp_path: Path) -> BaseFolder:
    """Return a store of its own with the same base."""
    folder = folder_at(tmp_path / "store")
    target = folder.root / "base"
    target.mkdir(parents=True)
    for path in (llama / "store" / "base").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return folder


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of a weight": lambda base: flip(base / "base-00000.safetensors", -5),
    "a bit of the header": lambda base: flip(base / "base-00000.safetensors", 40),
    "the length of the header": lambda base: flip(base / "base-00000.safetensors", 5),
    "a bit of the manifest": lambda base: flip(base / "manifest.json", 30),
    "a manifest cut short": lambda base: (base / "manifest.json").write_bytes(b'{"body": "{'),
    "no manifest": lambda base: (base / "manifest.json").unlink(),
    "no weights": lambda base: (base / "base-00000.safetensors").unlink(),
    "weights cut short": lambda base: (base / "base-00000.safetensors").write_bytes(b"\0" * 99),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_base_is_quantised_anew_and_stored_anew(
    llama: Path, tmp_path: Path, damage: str
) -> None:
    """Whatever is wrong with it, it is said, nothing of it is used, and the next start is fast."""
    folder = copy_of(llama, tmp_path)
    DAMAGES[damage](folder.root / "base")
    messages = store(llama / "model", {}, folder)
    after = store(llama / "model", {}, folder)

    assert messages[0].startswith("the stored quantised base cannot be used (")
    assert messages[0].endswith("): it is quantised anew")
    assert messages[1].startswith("the quantised base is stored on this machine")
    assert len(after) == 1
    assert after[0].startswith("the quantised base is read from this machine's disk")


@pytest.mark.parametrize("other", ["wider", "deeper", "other storage"])
def test_a_base_under_a_wrong_name_is_not_loaded(llama: Path, tmp_path: Path, other: str) -> None:
    """Of another shape, of other layers, or in int8: the model is quantised from its own files."""
    folder, place = copy_of(llama, tmp_path), llama / "model"
    if other != "other storage":
        sizes = {"hidden": 64} if other == "wider" else {"layers": 3}
        place = tiny.make_model(tmp_path / "other", **sizes)
    method = {"quant": "int8"} if other == "other storage" else {}
    messages: list[str] = []
    stored = StoredBase(folder=folder, name="base", on_message=messages.append)
    found = load(place, method, stored)

    assert messages[0].startswith("the stored quantised base cannot be used (it")
    assert torch.equal(logits(found), logits(load(place, method, None)))


def tensors(size: int = 1000) -> dict[str, torch.Tensor]:
    """Return a few tensors of several types and layouts."""
    matrix = torch.arange(size, dtype=torch.float32).reshape(10, -1)
    return {
        "plain": matrix,
        "turned": matrix.T,
        "half": matrix.to(torch.bfloat16),
        "bytes": torch.arange(200, dtype=torch.uint8),
        "flags": matrix > 3,
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 3),
    }


def test_tensors_come_back_with_their_types_shapes_and_layouts(tmp_path: Path) -> None:
    """Also a single number, an empty tensor, and one whose columns lie one behind the other."""
    folder = folder_at(tmp_path)
    folder.write("one", tensors(), {"a": 1}, stop=threading.Event())
    found = folder.read("one")

    assert found is not None
    assert found.facts == {"a": 1}
    for name, tensor in tensors().items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].stride() == tensor.stride()
        assert found.tensors[name].dtype == tensor.dtype


def test_other_tools_read_the_files(llama: Path) -> None:
    """Each is a file of the safetensors format."""
    from safetensors.torch import load_file

    found = load_file(llama / "store" / "base" / "base-00000.safetensors")

    assert found["model.layers.0.self_attn.q_proj.weight"].dtype is torch.uint8


@pytest.mark.parametrize("halves", [False, True])
def test_a_process_killed_while_it_stores_leaves_a_whole_base_or_none(
    tmp_path: Path, *, halves: bool
) -> None:
    """At every single call to the disk; and the next process leaves nothing half-written."""
    calls = 0
    while True:
        root = tmp_path / str(calls)
        disk = DyingDisk(calls, halves=halves)
        try:
            folder_at(root, disk).write("one", tensors(), {}, stop=threading.Event())
        except Died:
            calls += 1
        else:
            break
        assert folder_at(root).read("one") is None or _is_whole(folder_at(root))
        partials = [*root.glob(".*.partial")]
        for partial in partials:  # this process lives; the one that was killed does not
            partial.rename(partial.with_name(".one.999999999.partial"))
        folder_at(root).write("one", tensors(), {}, stop=threading.Event())
        assert _is_whole(folder_at(root))
        assert [path.name for path in root.iterdir()] == ["one"]

    assert calls > 8


def _is_whole(folder: BaseFolder) -> bool:
    found = folder.read("one")
    return found is not None and torch.equal(found.tensors["plain"], tensors()["plain"])


def test_a_full_disk_costs_the_stored_base_and_nothing_else(llama: Path, tmp_path: Path) -> None:
    """The training goes on, the reason is said, and nothing half-written stays."""
    folder = folder_at(tmp_path / "store", FailingDisk(3, ENOSPC))
    messages = store(llama / "model", {}, folder)

    assert messages[0].startswith("the quantised base is not stored on this machine: ")
    assert [*folder.root.iterdir()] == []


def test_what_is_being_stored_is_given_up_when_the_process_ends(tmp_path: Path) -> None:
    """A notice leaves seconds: writing stops at once and takes back what it wrote."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        folder_at(tmp_path).write("one", tensors(), {}, stop=stop)

    assert [*tmp_path.iterdir()] == []


def test_the_base_used_longest_ago_makes_room(tmp_path: Path) -> None:
    """Beyond the bound it is removed; what was read last stays, though it was written first."""
    folder = folder_at(tmp_path, size_max=40_000)
    for name in ("first", "second"):
        folder.write(name, tensors(), {}, stop=threading.Event())
    _age(tmp_path / "first", 200)
    _age(tmp_path / "second", 100)
    folder.read("first")
    for _ in range(2):
        folder.write("third", tensors(2000), {}, stop=threading.Event())

    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "third"]


def _age(folder: Path, seconds: float) -> None:
    import os

    before = (folder / "manifest.json").stat().st_mtime - seconds
    os.utime(folder / "manifest.json", (before, before))


def test_nothing_is_stored_where_the_disk_has_no_room(tmp_path: Path) -> None:
    """One and a half times its size must be free, or the run itself would lack it."""
    folder = folder_at(tmp_path, free_bytes=lambda _: 10_000)

    assert folder.write("one", tensors(), {}, stop=threading.Event()) == 0
    assert folder.read("one") is None


def test_a_base_that_does_not_fit_into_memory_is_kept_and_quantised(
    llama: Path, tmp_path: Path
) -> None:
    """A card may have room for it where the machine has not: weights then come one by one."""
    copy_of(llama, tmp_path)
    folder = folder_at(tmp_path / "store", memory_bytes=lambda: 10_000)
    messages = store(llama / "model", {}, folder)

    assert messages == ["too little memory is free to read the stored quantised base"]
    assert folder_at(tmp_path / "store").read("base") is not None


def test_a_small_base_is_not_stored(tmp_path: Path) -> None:
    """It is quantised in no time, and the machine's disk is left alone."""
    folder = folder_at(tmp_path / "store", size_least=1 << 20)

    assert folder.write("one", tensors(), {}, stop=threading.Event()) == 0
    assert not folder.root.exists()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(4, dtype=torch.complex64), "complex64"),
        (torch.zeros(4, 4)[:, :2], "a part of a larger tensor"),
    ],
)
def test_what_the_format_lacks_is_named(tmp_path: Path, tensor: torch.Tensor, reason: str) -> None:
    """Such a base is quantised at each start, and the reason is said."""
    with pytest.raises(NotStorable, match=reason):
        folder_at(tmp_path).write("one", {"odd": tensor}, {}, stop=threading.Event())


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    """Files are looked for in the folder of the base only."""
    from trainer.adapters.stored_files import _manifest

    (tmp_path / "one").mkdir()
    body = {"files": [{"name": "../x", "size": 1, "sha256": ""}], "strides": {}, "facts": {}}
    (tmp_path / "one" / "manifest.json").write_bytes(_manifest(body))

    with pytest.raises(NotWhole, match="elsewhere"):
        folder_at(tmp_path).read("one")


def test_the_name_of_a_base_depends_on_all_that_its_bits_depend_on() -> None:
    """Another base, storage, arithmetic, device or version has another name; order has no part."""
    facts = {"base": "a", "storage": "nf4", "hardware": {"cpu": "x"}, "versions": {"torch": "2"}}
    turned = dict(reversed(facts.items()))
    others = [{**facts, key: "other"} for key in facts]
    names = {folder_name("m", one) for one in (facts, *others)}

    assert len(names) == 5
    assert folder_name("m", turned) == folder_name("m", facts)
    assert folder_name("../../a b", facts).startswith("a-b-")


def test_bases_lie_beside_the_cache_of_the_hub() -> None:
    """Where the user keeps bases there is room; else in the user's cache, never in a run."""
    assert store_folder({"HF_HOME": "/big/hf"}) == Path("/big/hf/qft/bases")
    assert store_folder({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/qft/bases")
    assert store_folder({}) == Path("~/.cache/qft/bases").expanduser()
