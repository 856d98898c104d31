"""`method.from` on the laptop: found, checked before anything is rented, sent as plain files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import support.hub as hubs
import yaml
from support import tiny
from support.models import make_adapter
from support.runs import Project, make_project

from commands.runs import config_diff
from commands.runs.config import check_data_and_model, load
from commands.runs.fetched_run import gather_facts
from commands.runs.find_config import reopen
from commands.runs.home import run_folder
from commands.runs.local_trainer import local_run_dir
from commands.runs.parent_adapter import resolve_parent
from commands.runs.payload import build_payload
from commands.runs.planning.make_page import make_plan
from commands.runs.receipt import make_receipt
from commands.runs.request import RunRequest
from commands.runs.result_files import expected
from commands.runs.session import open_session
from commands.ui.errors import HostError, UsageError
from infra.durable import write_json
from infra.run.journal import Journal, Kind
from trainer.adapters.parent import adapter_sha256
from trainer.method_table import MethodKind

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 4, "use_dora": True,
    "target_modules": ["q_proj"], "base_model_name_or_path": "somebody/base",
}  # fmt: skip


def write_adapter(folder: Path, **settings: Any) -> Path:
    """Write an adapter as PEFT does, with files beside it that nobody reads."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    for name in ("README.md", "optimizer.pt", "adapter_model.bin"):
        (folder / name).write_bytes(b"no business of ours")
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose run goes on from `mine`, in a process whose home is its own."""
    made = make_project(tmp_path / "project")
    write_adapter(made.folder / "mine")
    go_on_from(made, "mine")
    monkeypatch.setenv("QFT_HOME", str(made.home))
    monkeypatch.chdir(made.folder)
    return made


def go_on_from(project: Project, name: str, **method: Any) -> None:
    """Write into run.yaml what it goes on from, and nothing else of the method."""
    content = yaml.safe_load(project.config.read_text())
    content["method"] = {"from": name, **method}
    project.config.write_text(yaml.safe_dump(content))


def attempt(project: Project) -> None:
    """Open the run as `qft run` does, and fail at once."""
    loaded, parent = resolve_parent(load(project.config), project.home)
    console: Any = SimpleNamespace(log=lambda _: None, progress=None, report=None)
    request = RunRequest(loaded=loaded, home=project.home, console=console, parent=parent)
    with pytest.raises(OSError, match="no luck"), open_session(request):
        raise OSError("no luck")


def test_the_config_has_what_the_adapter_decides(project: Project) -> None:
    """Rank, scale, layers and kind are the adapter's; what may come home follows them."""
    loaded, directory = resolve_parent(load(project.config), project.home)
    method = loaded.config.method

    assert (method.kind, method.r, method.alpha) == (MethodKind.QDORA, 16, 4)
    assert method.targets == ["q_proj"]
    assert directory == project.folder / "mine"
    assert expected(loaded).method == method


def test_plain_files_go_to_the_machine(project: Project) -> None:
    """Two files of five: tensors and settings; the config there names them from its own place."""
    attempt(project)
    folder = run_folder(project.home, "tiny")
    payload = build_payload(reopen(folder), folder.payload)
    item = next(one for one in payload.items("qft/tiny") if one.label == "parent adapter")
    config = json.loads(payload.config.read_text())

    assert isinstance(item.source, Path)
    sent = sorted(path.name for path in item.source.iterdir())
    assert sent == ["adapter_config.json", "adapter_model.safetensors"]
    assert (item.target, item.exact) == ("qft/tiny/parent", True)
    assert config["method"]["from"] == "../parent"
    assert config["method"]["r"] == 16


def test_a_trained_run_keeps_the_adapter_that_it_began_with(project: Project) -> None:
    """Until then another one under the same name counts; `--fresh` takes the new one, too."""
    attempt(project)
    mine = project.folder / "mine" / "adapter_config.json"
    mine.write_text(json.dumps(SETTINGS | {"r": 32}))
    attempt(project)
    before = reopen(run_folder(project.home, "tiny")).config.method.r
    journal = Journal(run_folder(project.home, "tiny").journal, clock=time.time)
    journal.append(Kind.PROGRESS, step=5, steps=9)
    journal.append(Kind.CHECKPOINT_HOME, step=5)
    mine.write_text(json.dumps(SETTINGS | {"r": 64}))
    bound, _ = resolve_parent(load(project.config), project.home)
    fresh, _ = resolve_parent(load(project.config), project.home, fresh=True)

    assert (before, bound.config.method.r, fresh.config.method.r) == (32, 32, 64)


def test_what_is_inherited_is_no_change_of_the_config(project: Project) -> None:
    """A run.yaml that leaves the rank to the adapter is the one that the run was started with."""
    attempt(project)
    folder = run_folder(project.home, "tiny")

    assert not config_diff.is_changed(load(project.config), folder)
    go_on_from(project, "mine", optimizer="adamw8bit")
    saved = json.loads(folder.config.read_text())
    assert [*config_diff.changes(load(project.config), saved, (), bound=False)] == [
        "method.optimizer"
    ]


def test_tools_on_this_computer_find_it_where_a_machine_has_it(project: Project) -> None:
    """`qft verify` repeats the first steps from the same weights."""
    attempt(project)
    folder = run_folder(project.home, "tiny")
    with local_run_dir(reopen(folder), folder) as run_dir:
        there = (run_dir / "../parent").resolve()

    assert adapter_sha256(there) == adapter_sha256(project.folder / "mine")


def test_a_finished_run_is_named_by_its_name(project: Project) -> None:
    """Its adapter is taken where it came home to; one that did not is asked for, slips are met."""
    first = make_project(project.folder / "elsewhere", name="first")
    folder = run_folder(project.home, "first")
    Journal(folder.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="f-1", name="first")
    content = load(first.config).config.model_dump(mode="json")
    write_json(folder.config, {"config": content, "path": str(first.config)})
    go_on_from(project, "first")
    with pytest.raises(UsageError) as absent:
        resolve_parent(load(project.config), project.home)
    write_adapter(first.out / "adapter")
    _, found = resolve_parent(load(project.config), project.home)
    go_on_from(project, "frist")
    with pytest.raises(UsageError) as slip:
        resolve_parent(load(project.config), project.home)

    assert absent.value.hint.startswith("`qft fetch first` brings it")
    assert found == first.out / "adapter"
    assert slip.value.message.endswith("did you mean the run `first`?")


def test_the_results_of_a_run_stand_for_its_adapter(project: Project) -> None:
    """`out/NAME` is what a person types who looks for it."""
    write_adapter(project.folder / "out" / "older" / "adapter")
    go_on_from(project, "out/older")
    _, found = resolve_parent(load(project.config), project.home)

    assert found == project.folder / "out" / "older" / "adapter"


@pytest.mark.parametrize(
    ("settings", "method", "words"),
    [
        ({}, {"r": 8, "alpha": 8}, "method.r: 8 is given, and the adapter in `method.from` has 16"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "`rank_pattern` is set"),
        ({"bias": "all"}, {}, "`bias` is not `none`"),
        ({"peft_type": "IA3"}, {}, "`peft_type` is IA3"),
    ],
)
def test_what_the_machine_would_refuse_is_refused_here(
    project: Project, settings: dict[str, Any], method: dict[str, Any], words: str
) -> None:
    """`qft plan` and `qft run` end before an offer is asked for."""
    (project.folder / "mine" / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    go_on_from(project, "mine", **method)

    with pytest.raises(UsageError, match="nothing was rented") as caught:
        make_plan("")
    assert words in str(caught.value.problems)


def test_an_adapter_for_another_size_is_refused_here(project: Project, tmp_path: Path) -> None:
    """By the headers of the files alone; one of the right size is taken."""
    shutil.rmtree(project.folder / "mine")
    make_adapter(tiny.make_model(tmp_path / "wide", hidden=64), project.folder / "mine")
    with pytest.raises(UsageError) as caught:
        resolve_parent(load(project.config), project.home)
    shutil.rmtree(project.folder / "mine")
    make_adapter(project.folder / "model", project.folder / "mine")

    assert "was made for another base: model.layers.0." in str(caught.value.problems)
    assert resolve_parent(load(project.config), project.home)[0].config.method.r == 4


def test_a_layer_to_save_that_the_base_lacks_is_refused_here(project: Project) -> None:
    """With what there is; a head that is tied to the embedding is in no file, and is there."""
    content = yaml.safe_load(project.config.read_text())
    content["method"] = {"save": ["lm_head", "model.norm", "wte"]}
    project.config.write_text(yaml.safe_dump(content))

    with pytest.raises(UsageError) as caught:
        check_data_and_model(load(project.config))
    has = "embed_tokens, input_layernorm, norm, post_attention_layernorm"
    assert caught.value.problems == [f"method.save: the base has no layer called wte; it has {has}"]


def test_another_base_of_a_hub_is_refused_here(project: Project) -> None:
    """The adapter names the base that it was trained on, and so does run.yaml."""
    content = yaml.safe_load(project.config.read_text())
    content["model"] = {"id": "somebody/other"}
    project.config.write_text(yaml.safe_dump(content))

    with pytest.raises(UsageError) as caught:
        resolve_parent(load(project.config), project.home)
    assert "was trained on `somebody/base`, and `model.id` is `somebody/other`" in str(
        caught.value.problems
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """A hub on loopback that has an adapter."""
    write_adapter(tmp_path / "published")
    with hubs.running() as running:
        for path in (tmp_path / "published").iterdir():
            running.models[f"me/style/{path.name}"] = path.read_bytes()
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield running


def test_an_adapter_on_a_hub_is_fetched_here(hub: hubs.Hub, project: Project) -> None:
    """Only what is read of it; the machine is sent the files and needs no token."""
    go_on_from(project, "me/style@v2")
    loaded, directory = resolve_parent(load(project.config), project.home)
    fetched = {one.rpartition("/")[2] for one in hub.requests if "/resolve/" in one}

    assert loaded.config.method.r == 16
    assert directory is not None
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}
    assert (directory.parents[1] / "refs" / "v2").is_file()


@pytest.mark.usefixtures("hub")
def test_a_name_that_no_hub_has_ends_before_renting(project: Project) -> None:
    """The message has the hub's own reason, and says why a hub was asked at all."""
    go_on_from(project, "me/stile")

    with pytest.raises((UsageError, HostError)) as caught:
        resolve_parent(load(project.config), project.home)
    assert caught.value.message == "method.from: `me/stile` was not fetched; nothing was rented"
    assert "taken for a name on a hub" in caught.value.hint
    assert "me/stile at main cannot be fetched: 404" in str(caught.value.problems)


def test_receipt_and_card_name_the_parent(project: Project) -> None:
    """By its name and not by a path of this computer, with what it hashes to."""
    attempt(project)
    folder = run_folder(project.home, "tiny")
    receipt = make_receipt(folder, project.out, simulated=True)
    facts = gather_facts(folder, reopen(folder))

    assert receipt.to_json()["parent"] == "mine"
    assert ("went on from", "mine") in receipt.lines()
    digest = adapter_sha256(project.folder / "mine")
    assert facts["parent"] == {"name": "mine", "sha256": digest}
    assert tiny.ROOT.name not in json.dumps(facts["parent"])
