"""Before anything is rented a base on a hub is had: by the machine, or here and sent; or not."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support import model_hub
from support.model_hub import ModelHub, Repository

from commands.audit import audit
from commands.doctor import examine
from commands.runs import hub_base, session
from commands.runs.base_record import HubBase, recorded_base
from commands.runs.config import LoadedConfig, check_data_and_model, load
from commands.runs.config_diff import changes
from commands.runs.home import RunFolder, make_private
from commands.runs.hub_base import choose_base, inspect_base, name_sent_base, require_token
from commands.runs.local_trainer import local_run_dir
from commands.runs.payload import build_payload
from commands.runs.planning.make_page import make_plan
from commands.runs.request import RunRequest
from commands.runs.session import _saved
from commands.ui.console import PlainConsole
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.run.state import RunState
from trainer.config import load_config

BASE = "meta/llama"
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
WEIGHTS = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
"""A whole safetensors file without a tensor."""
FILES = {
    "config.json": json.dumps(SHAPE).encode(),
    "tokenizer.json": b'{"model": 1}',
    "model.safetensors": WEIGHTS,
    "original/consolidated.00.pth": b"x" * 9,
    "README.md": b"words",
}
NEXT = "e" * 40
HERE = {"provider": "local", "gpu": "T4"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub with a gated and a free model, for a user whose caches are empty."""
    with model_hub.running() as running:
        running.models[BASE] = Repository(files=dict(FILES), gated="manual", readers={"ann"})
        running.models["free/gpt"] = Repository(files=dict(FILES))
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("QFT_HOME", str(tmp_path / "home"))
        yield running


@pytest.fixture
def messages() -> list[str]:
    """What a command says beside its result."""
    return []


def project(
    folder: Path, model: str = BASE, *, vm: Mapping[str, Any] = HERE, **table: Any
) -> LoadedConfig:
    """Write a run.yaml on that base, and rows."""
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    config = {
        "name": "tiny",
        "vm": dict(vm),
        "model": {"id": model, **table},
        "data": {"train": "train.jsonl", "prompt": "{text}", "completion": "{label}"},
        "train": {"steps": 9},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "run.yaml")


QUIET = PlainConsole(io.StringIO(), simulated=True, clock=lambda: 0.0)
"""A console that nobody reads."""


def folder_of(tmp_path: Path) -> RunFolder:
    """Where the run is recorded."""
    return RunFolder(root=tmp_path / "home" / "runs" / "tiny")


def chosen(
    loaded: LoadedConfig,
    tmp_path: Path,
    saved: dict[str, Any] | None = None,
    *,
    bound: bool = False,
) -> HubBase | None:
    """The base that a start of the run takes."""
    run = folder_of(tmp_path)
    return choose_base(loaded, saved or {}, run, bound=bound, console=QUIET)


def pushed(loaded: LoadedConfig, tmp_path: Path, base: HubBase | None) -> tuple[Any, Path | None]:
    """What the machine's config says of the model, and the folder that is sent as the base."""
    payload = build_payload(loaded, tmp_path / "payload", base=base)
    return json.loads(payload.config.read_text())["model"], payload.model


@pytest.mark.parametrize(
    ("user", "words"), [("", "nobody is signed in to the hub here"), ("bob", "has not been given")]
)
def test_a_gated_base_is_refused_before_money(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, words: str
) -> None:
    """Plan, audit, a start and the doctor name the page to visit, for nobody and for a stranger."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up(user) if user else "")
    loaded = project(tmp_path)

    for act in (
        lambda: make_plan(str(loaded.path)),
        lambda: audit(str(loaded.path), html="", as_json=False),
        lambda: chosen(loaded, tmp_path),
    ):
        with pytest.raises(UsageError, match="nothing was rented") as caught:
            act()
        assert words in caught.value.problems[0]
        assert f"{hub.endpoint}/{BASE}" in caught.value.hint
    found = {check.name: check for check in examine(str(loaded.path))}["base"]
    assert found.failed
    assert words in found.detail
    assert f"{hub.endpoint}/{BASE}" in found.fix


def test_a_plan_of_an_accepted_base_estimates_it(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With access the plan says who fetches the base, and fetches no weights to estimate it."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    page = make_plan(str(project(tmp_path).path))

    line = next(line for line in page.lines(1000) if line.startswith("base: "))
    assert "gated, and you may have it: it is fetched here and sent" in line
    assert page.estimate is not None
    assert page.to_json()["base"] == {
        "id": BASE,
        "commit": model_hub.COMMIT,
        "restricted": True,
        "weights_bytes": len(WEIGHTS),
        "sent": True,
    }
    assert sorted(hub.fetched()) == ["config.json", "tokenizer.json"]


def test_a_silent_hub_is_no_refusal(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """Without an answer a plan goes on with what was fetched before, and says so."""
    loaded = project(tmp_path, "free/gpt")
    first = make_plan(str(loaded.path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    again = make_plan(str(loaded.path))

    assert inspect_base(loaded, messages.append) is None
    assert (
        "the hub was not asked whether you may have `free/gpt`: it does not answer" in messages[0]
    )
    assert first.estimate is not None
    assert again.estimate == first.estimate


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_network_that_is_switched_off_is_left_off(
    hub: ModelHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    name: str,
) -> None:
    """A user who works offline is asked for nothing, and nobody is."""
    monkeypatch.setenv(name, "1")

    assert inspect_base(project(tmp_path), messages.append) is None
    assert "the network is switched off" in messages[0]
    assert hub.requests == []


def test_without_the_library_nobody_is_refused(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """An installation without the extra says what it lacks to ask."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    assert inspect_base(project(tmp_path), messages.append) is None
    assert "pip install huggingface_hub" in messages[0]
    assert hub.requests == []


def test_a_free_base_is_fetched_by_the_machine_at_one_commit(hub: ModelHub, tmp_path: Path) -> None:
    """A branch that moves between two starts does not change what the run trains on."""
    loaded = project(tmp_path, "free/gpt")
    first = chosen(loaded, tmp_path)
    saved = json.loads(json.dumps(_saved(loaded, (), first)))
    hub.models["free/gpt"].commits["main"] = NEXT
    before = len(hub.requests)

    again = chosen(loaded, tmp_path, saved, bound=True)

    assert again == first
    assert len(hub.requests) == before
    table, sent = pushed(loaded, tmp_path, again)
    assert (table["id"], table["revision"], sent) == ("free/gpt", model_hub.COMMIT, None)


def test_a_plan_of_a_run_that_began_shows_its_commit(hub: ModelHub, tmp_path: Path) -> None:
    """What is planned and audited is what goes on, though the branch has moved since."""
    loaded, run = project(tmp_path, "free/gpt"), folder_of(tmp_path)
    make_private(run.root)
    write_json(run.config, _saved(loaded, (), chosen(loaded, tmp_path)))
    run.journal.touch()
    hub.models["free/gpt"].commits = {"main": NEXT, "old": model_hub.COMMIT}

    page = make_plan(str(loaded.path))

    assert page.base is not None
    assert page.base.base.commit == model_hub.COMMIT


def test_a_first_start_warns_of_a_base_that_does_not_fit(hub: ModelHub, tmp_path: Path) -> None:
    """No plan was made, and no description was here: the card is judged once the hub has told."""
    large = json.dumps(SHAPE | {"hidden_size": 8192, "intermediate_size": 28672}).encode()
    hub.models["free/gpt"].files["config.json"] = large
    vm = {"provider": "azure", "gpu": "T4", "regions": ["westus2"], "max_price": 0.3}
    loaded, lines = project(tmp_path, "free/gpt", vm=vm), io.StringIO()
    console = PlainConsole(lines, simulated=False, clock=lambda: 0.0)
    request = RunRequest(loaded=loaded, home=tmp_path / "home", console=console)

    for _ in range(2):
        session._base_of(request, {}, RunState())

    assert lines.getvalue().count("warning: memory: does NOT fit a T4") == 1


def test_a_run_of_before_goes_on_as_it_was(hub: ModelHub, tmp_path: Path) -> None:
    """A run that recorded no commit keeps the revision of its run.yaml, and no hub is asked."""
    loaded = project(tmp_path, "free/gpt")
    base = chosen(loaded, tmp_path, _saved(loaded, ()), bound=True)

    assert base is None
    assert hub.requests == []
    assert pushed(loaded, tmp_path, base)[0]["revision"] == "main"


def test_another_revision_in_run_yaml_is_another_base(hub: ModelHub, tmp_path: Path) -> None:
    """What was recorded holds for the id and revision that it was recorded for."""
    saved = _saved(
        project(tmp_path, "free/gpt"), (), chosen(project(tmp_path, "free/gpt"), tmp_path)
    )
    hub.models["free/gpt"].commits["v2"] = NEXT
    loaded = project(tmp_path, "free/gpt", revision="v2")

    assert recorded_base(loaded, saved, folder_of(tmp_path)) is None
    found = chosen(loaded, tmp_path, saved)
    assert found is not None
    assert found.commit == NEXT


@pytest.mark.parametrize(
    "record",
    [None, [], {"commit": "x"}, {"id": "free/gpt", "revision": "main", "commit": "../../etc"}],
)
def test_a_record_that_is_none_is_not_believed(tmp_path: Path, record: object) -> None:
    """A damaged run.json names no commit."""
    loaded = project(tmp_path, "free/gpt")

    assert recorded_base(loaded, {"base": record}, folder_of(tmp_path)) is None


def test_a_gated_base_is_fetched_here_and_sent(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training loads of it goes to the machine as a directory; a second start asks nobody."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    loaded = project(tmp_path)
    base = chosen(loaded, tmp_path)
    assert base is not None
    table, sent = pushed(loaded, tmp_path, base)
    before = len(hub.requests)

    again = chosen(loaded, tmp_path, _saved(loaded, (), base), bound=True)

    assert table["id"] == "../model"
    assert sent == folder_of(tmp_path).base
    there = {path.name: path.read_bytes() for path in sent.iterdir()}
    assert there == {
        name: FILES[name] for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    assert again == base
    assert len(hub.requests) == before


def test_an_adapter_of_a_base_that_was_sent_names_the_hub(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the base on the machine becomes its id, which PEFT can load."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    loaded, run = project(tmp_path), folder_of(tmp_path)
    run.root.mkdir(parents=True)
    write_json(run.config, _saved(loaded, (), chosen(loaded, tmp_path)))
    config = loaded.out / "adapter" / "adapter_config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"base_model_name_or_path": "/root/qft/r/model", "r": 8}')

    name_sent_base(loaded, run)

    assert json.loads(config.read_text()) == {"base_model_name_or_path": BASE, "r": 8}


def test_a_base_that_left_the_cache_is_fetched_again(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of the record is fetched, though the branch has moved since."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    loaded = project(tmp_path)
    base = chosen(loaded, tmp_path)
    hub.models[BASE].commits = {"main": NEXT, "old": model_hub.COMMIT}
    shutil.rmtree(tmp_path / "hf")

    again = chosen(loaded, tmp_path, _saved(loaded, (), base), bound=True)

    assert again == base
    assert (folder_of(tmp_path).base / "model.safetensors").read_bytes() == WEIGHTS


def test_a_fetch_tells_how_far_it_is(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes in the cache are told while the weights come, and never more than there are."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    monkeypatch.setattr(hub_base, "PROGRESS_S", 0.01)
    shown: list[tuple[str, int, int]] = []
    console = SimpleNamespace(log=lambda _text: None, progress=lambda *all_: shown.append(all_))

    choose_base(project(tmp_path), {}, folder_of(tmp_path), bound=False, console=console)

    assert {(what, most) for what, _, most in shown} == {("base from the hub", len(WEIGHTS))}
    assert {done for _, done, _ in shown} <= set(range(len(WEIGHTS) + 1))


def test_a_name_that_is_nowhere_is_refused_with_both_places(hub: ModelHub, tmp_path: Path) -> None:
    """`models/mine` may be a directory that is missing or a hub's id: neither is there."""
    with pytest.raises(UsageError) as caught:
        inspect_base(project(tmp_path, "models/mine"), lambda _text: None)

    assert "the hub has no model `models/mine`" in caught.value.problems[0]
    assert "nor is there a directory of that name beside run.yaml" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("https://huggingface.co/meta/llama", "{id: meta/llama}"),
        ("https://huggingface.co/meta/llama/tree/v1.0", "{id: meta/llama, revision: v1.0}"),
        ("huggingface.co/meta/llama/", "{id: meta/llama}"),
        ("https://hf.co/meta/llama?library=transformers", "{id: meta/llama}"),
        ("hf://meta/llama@v1", "{id: meta/llama, revision: v1}"),
        ("meta/llama:v1", "{id: meta/llama, revision: v1}"),
    ],
)
def test_an_address_is_answered_with_the_id_in_it(tmp_path: Path, name: str, meant: str) -> None:
    """What was copied from a browser, or from another tool, is shown as run.yaml has it."""
    with pytest.raises(UsageError) as caught:
        check_data_and_model(project(tmp_path, name))

    assert caught.value.problems == [f"model.id: `{name}` is no hub id; write `model: {meant}`"]


def test_a_full_disk_is_found_before_the_fetch(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base larger than the room here is refused, with the way that needs none."""
    monkeypatch.setenv("HF_TOKEN", hub.sign_up("ann"))
    loaded = project(tmp_path)
    inspect_base(loaded, lambda _text: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1))

    with pytest.raises(UsageError, match="has 10 bytes, and") as caught:
        chosen(loaded, tmp_path)
    assert "token_env" in caught.value.hint
    assert "model.safetensors" not in hub.fetched()


def test_an_audit_reads_the_description_and_asks_no_more(hub: ModelHub, tmp_path: Path) -> None:
    """Its run directory has the fetched config and tokenizer where a machine has the base."""
    loaded = project(tmp_path, "free/gpt")
    answer = inspect_base(loaded, lambda _text: None)
    assert answer is not None

    with local_run_dir(loaded, folder_of(tmp_path), answer.base) as run_dir:
        config = load_config(run_dir / "config.json")
        names = {path.name for path in (run_dir / config.model.id).iterdir()}

    assert names == {"config.json", "tokenizer.json"}


def test_a_named_token_lets_the_machine_fetch(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `token_env` a gated base stays a hub's; its config names neither token nor variable."""
    token = hub.sign_up("ann")
    monkeypatch.setenv("HF_READ", token)
    loaded = project(tmp_path, token_env="HF_READ")
    base = chosen(loaded, tmp_path)
    table, sent = pushed(loaded, tmp_path, base)

    account = require_token(loaded, lambda _text: None)

    assert account is not None
    assert account.token is not None
    assert (account.token.reveal(), account.endpoint) == (token, hub.endpoint)
    assert (table["id"], table["revision"], sent) == (BASE, model_hub.COMMIT, None)
    assert "token_env" not in table
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize(
    ("role", "words"), [(None, "`HF_READ` is not set"), ("write", "HF_READ may write")]
)
def test_a_token_that_a_machine_should_not_have_is_refused(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str | None, words: str
) -> None:
    """A variable without a value, or one with a token that may write, ends before renting."""
    if role:
        monkeypatch.setenv("HF_READ", hub.sign_up("ann", role))

    with pytest.raises(UsageError) as caught:
        require_token(project(tmp_path, token_env="HF_READ"), lambda _text: None)
    assert words in " ".join([caught.value.message, *caught.value.problems])


def test_who_fetches_the_base_changes_no_run(hub: ModelHub, tmp_path: Path) -> None:
    """`token_env` may be added to a run that has begun: nothing is learnt otherwise."""
    saved = _saved(project(tmp_path), ())

    assert changes(project(tmp_path, token_env="HF_READ"), saved, (), bound=True) == {}
