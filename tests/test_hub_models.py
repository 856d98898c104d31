"""A hub is asked whether a base may be had, before anything is rented; each answer has a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import model_hub
from support.model_hub import ModelHub, Repository

from trainer import hub_models
from trainer.hub_models import (
    AccessDeniedError,
    Account,
    BaseRefusedError,
    ModelNotFoundError,
    NoSuchRevisionError,
    NotABaseError,
    TokenRefusedError,
    fetch_description,
    find_account,
    find_model,
    require_read_only,
)
from trainer.secret import Secret

BASE = "meta/llama"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{ }",
    "model.safetensors": b"w" * 1000,
    "original/consolidated.00.pth": b"p" * 5000,
    "README.md": b"words",
}


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    """A hub with one gated and one free model."""
    with model_hub.running() as running:
        running.models[BASE] = Repository(files=dict(FILES), gated="manual")
        running.models["free/gpt"] = Repository(files=dict(FILES))
        yield running


def account(hub: ModelHub, token: str = "", name: str = "HF_TOKEN") -> Account:
    """Who asks that hub."""
    return find_account({"HF_ENDPOINT": hub.endpoint, name: token, **NOBODY}, token_env=name)


NOBODY = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
"""Nothing that this computer's user has stored is sent."""


def refusal(who: Account, model: str, revision: str = "main") -> BaseRefusedError:
    """Why this user does not get that base."""
    with pytest.raises(BaseRefusedError) as caught:
        find_model(who, model, revision)
    return caught.value


def test_nobody_is_sent_to_accept_the_terms_and_sign_in(hub: ModelHub) -> None:
    """Without a token a gated base is refused with the page to open and what to type after it."""
    found = refusal(account(hub), BASE)

    assert type(found) is AccessDeniedError
    assert found.problem == f"`{BASE}` is gated, and nobody is signed in to the hub here"
    assert f"open {hub.endpoint}/{BASE} and accept its terms" in found.hint
    assert "`hf auth login`, or `export HF_TOKEN=...`" in found.hint


def test_a_user_without_access_is_named_with_the_page(hub: ModelHub) -> None:
    """A token whose user has not accepted the terms gives the page, and who that user is."""
    found = refusal(account(hub, hub.sign_up("ann")), BASE)

    assert type(found) is AccessDeniedError
    assert "`ann` (of HF_TOKEN) has not been given access to it" in found.problem
    assert found.hint.startswith(f"open {hub.endpoint}/{BASE} as that user")


@pytest.mark.parametrize(
    ("state", "words"), [("awaiting", "awaits a review"), ("rejected", "refused access")]
)
def test_a_request_that_was_made_is_not_repeated(hub: ModelHub, state: str, words: str) -> None:
    """Access that awaits a review, or was refused, is told as that."""
    getattr(hub.models[BASE], state).add("ann")

    assert words in refusal(account(hub, hub.sign_up("ann")), BASE).problem


def test_a_user_with_access_gets_the_commit(hub: ModelHub) -> None:
    """Accepted: the base is known with its commit, and what its weights weigh."""
    hub.models[BASE].readers.add("ann")

    found = find_model(account(hub, hub.sign_up("ann")), BASE, "main")

    assert (found.commit, found.restricted, found.weights_bytes) == (model_hub.COMMIT, True, 1000)
    assert hub.fetched() == []


def test_a_narrow_token_is_named_with_what_it_lacks(hub: ModelHub) -> None:
    """A fine-grained token without the right to gated repositories is named as the cause."""
    token = hub.sign_up("ann", "fineGrained")
    hub.users[token]["auth"]["accessToken"]["fineGrained"]["canReadGatedRepos"] = False  # type: ignore[index]  # as built there
    hub.models[BASE].readers.add("ann")

    found = refusal(account(hub, token), BASE)

    assert "fine-grained token that may not read gated repositories" in found.problem


def test_a_token_that_expired_is_named(hub: ModelHub) -> None:
    """A token that the hub does not accept is the fault, not the model that was asked for."""
    found = refusal(account(hub, "hf_expired"), BASE)

    assert type(found) is TokenRefusedError
    assert "does not accept HF_TOKEN" in found.problem
    assert "hf_expired" not in str(found)


def test_an_expired_token_keeps_nobody_from_a_free_base(hub: ModelHub) -> None:
    """What everybody may have is given, with a warning."""
    found = find_model(account(hub, "hf_expired"), "free/gpt", "main")

    assert found.commit == model_hub.COMMIT
    assert "does not accept HF_TOKEN" in found.warning


def test_a_slip_in_a_name_is_answered_with_near_ones(hub: ModelHub) -> None:
    """A model that is not there is refused with the names of its owner that are near."""
    hub.models["meta/llama-guard"] = Repository(files=dict(FILES))

    signed_in = refusal(account(hub, hub.sign_up("ann")), "meta/lama")
    nobody = refusal(account(hub), "meta/lama")
    owner = refusal(account(hub), "mata/llama")

    assert {type(one) for one in (signed_in, nobody, owner)} == {ModelNotFoundError}
    assert signed_in.problem == "the hub has no model `meta/lama`, or HF_TOKEN may not see it"
    assert "nobody is signed in here" in nobody.problem
    for found in (signed_in, nobody, owner):
        assert "did you mean `meta/llama`" in found.hint


@pytest.mark.parametrize(("kind", "word"), [("datasets", "data set"), ("spaces", "space")])
def test_what_is_no_model_is_called_by_its_kind(hub: ModelHub, kind: str, word: str) -> None:
    """The id of a data set or a space is told as that."""
    hub.others["me/pairs"] = kind

    assert f"`me/pairs` is a {word} on the hub" in refusal(account(hub), "me/pairs").problem


def test_a_private_model_looks_like_none_to_others(hub: ModelHub) -> None:
    """A private base is given to its owner; anybody else is told both things that it can be."""
    hub.models["me/own"] = Repository(files=dict(FILES), private=True, readers={"me"})

    assert find_model(account(hub, hub.sign_up("me")), "me/own", "main").restricted
    assert "or HF_TOKEN may not see it" in refusal(account(hub, hub.sign_up("x")), "me/own").problem


def test_a_revision_that_is_not_there_is_answered_with_those_that_are(hub: ModelHub) -> None:
    """A misspelt branch or tag is refused with the near one."""
    hub.models["free/gpt"].commits["v1.0"] = "d" * 40

    found = refusal(account(hub), "free/gpt", "v1.1")

    assert type(found) is NoSuchRevisionError
    assert "no revision `v1.1`" in found.problem
    assert "`v1.0`" in found.hint
    assert find_model(account(hub), "free/gpt", "v1.0").commit == "d" * 40
    assert find_model(account(hub), "free/gpt", "d" * 40).commit == "d" * 40


NO_BASES = {
    "an adapter": (  # transformers#25215
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"},
        "is an adapter, and no base: its base is `up/stream`",
        "method: {from: x/y}",
    ),
    "GGUF": (  # transformers#30889
        {"model.Q4_K_M.gguf": b"GGUF", "config.json": b"{}"},
        "holds GGUF files only",
        "perhaps `up/stream`",
    ),
    "diffusers": ({"model_index.json": b"{}"}, "pipeline of diffusers", ""),
    "no config": ({"model.safetensors": b"w"}, "has no config.json", "perhaps `up/stream`"),
    "in a folder": ({"hf/config.json": b"{}"}, "has no config.json", "folder `hf`"),
    "Meta's format": (  # llama-models#159
        {"config.json": b"{}", "consolidated.00.pth": b"p", "tokenizer.model": b"t"},
        "holds weights in the format of Meta's own code, and none that transformers trains from",
        "model.safetensors",
    ),
    "a variant": (
        {"config.json": b"{}", "model.fp16.safetensors": b"w"},
        "weights under a name that transformers does not load",
        "",
    ),
    "no weights": ({"config.json": b"{}", "tokenizer.json": b"{}"}, "holds no weights", ""),
    "no tokenizer": (
        {"config.json": b"{}", "model.safetensors": b"w"},
        "holds no tokenizer",
        "perhaps `up/stream`",
    ),
}


@pytest.mark.parametrize("kind", NO_BASES)
def test_what_holds_no_base_is_refused_for_what_it_holds(hub: ModelHub, kind: str) -> None:
    """A repository that exists and cannot be trained is refused with what to take instead."""
    files, problem, hint = NO_BASES[kind]
    card = {"base_model": ["up/stream"] if kind == "GGUF" else "up/stream"}
    hub.models["x/y"] = Repository(files=files, card=card)

    found = refusal(account(hub), "x/y")

    assert type(found) is NotABaseError
    assert problem in found.problem
    assert hint in found.hint


def test_pickled_weights_that_transformers_loads_are_a_base(hub: ModelHub) -> None:
    """`pytorch_model.bin` is read as tensors only, as before, with or without an index."""
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    hub.models["x/y"] = Repository(files=files | {"pytorch_model.bin": b"w" * 7})
    shards = {f"pytorch_model-0000{n}-of-00002.bin": b"w" * n for n in (1, 2)}
    index = {"pytorch_model.bin.index.json": b"{}"}
    hub.models["x/z"] = Repository(files=files | shards | index)

    assert find_model(account(hub), "x/y", "main").weights_bytes == 7
    assert find_model(account(hub), "x/z", "main").weights_bytes == 3


def test_only_the_description_is_fetched(hub: ModelHub, tmp_path: Path) -> None:
    """Config and tokenizer come, once, and no weights; the cache knows the revision after it."""
    who = account(hub)
    found = find_model(who, "free/gpt", "main")

    where = [
        fetch_description(who, found, "main", cache=tmp_path, trust_remote_code=False)
        for _ in range(2)
    ]

    assert where[0] == where[1]
    assert json.loads((where[0] / "config.json").read_bytes()) == {"model_type": "llama"}
    assert sorted(hub.fetched()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert (tmp_path / "models--free--gpt/refs/main").read_text() == model_hub.COMMIT


@pytest.mark.parametrize("trouble", [500, 503, 429])
def test_a_hub_in_trouble_refuses_nothing(hub: ModelHub, trouble: int) -> None:
    """What may pass is a ConnectionError, and no judgement on the base."""
    hub.trouble = trouble

    with pytest.raises(ConnectionError):
        find_model(account(hub), "free/gpt", "main")


def test_a_hub_that_takes_and_never_answers_is_silent(
    hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question has a limit, also those for which its library has none."""
    monkeypatch.setattr(hub_models, "ANSWER_S", 0.2)
    who = account(hub, hub.sign_up("ann"))
    hub.awake.clear()

    for act in (lambda: find_model(who, BASE, "main"), lambda: require_read_only(who)):
        with pytest.raises(ConnectionError):
            act()


def test_a_hub_that_is_not_there_refuses_nothing() -> None:
    """A closed port is silence."""
    with pytest.raises(ConnectionError):
        find_model(Account(endpoint="http://127.0.0.1:9"), "free/gpt", "main")


ROLES = {
    "read": ("read", (), True),
    "fine-grained, reading": ("fineGrained", ("repo.content.read",), True),
    "write": ("write", (), False),
    "fine-grained, writing": ("fineGrained", ("repo.content.read", "repo.write"), False),
}


@pytest.mark.parametrize("kind", ROLES)
def test_a_machine_gets_only_a_token_that_reads(hub: ModelHub, kind: str) -> None:
    """A token that may write is refused for `model.token_env`, by its role or its permissions."""
    role, permissions, fits = ROLES[kind]
    who = account(hub, hub.sign_up("ann", role, permissions), "HF_READ")

    if fits:
        assert require_read_only(who) == ""
        return
    with pytest.raises(TokenRefusedError, match="HF_READ") as caught:
        require_read_only(who)
    assert f"{hub.endpoint}/settings/tokens" in caught.value.hint


def test_a_role_that_is_missing_is_a_warning(hub: ModelHub) -> None:
    """A hub of another make may not know roles: that is said, and nothing is refused."""
    token = hub.sign_up("ann", "oauth")

    assert "does not say whether HF_READ may only read" in require_read_only(
        account(hub, token, "HF_READ")
    )


@pytest.mark.parametrize("text", ["hf_a b", "hf_ä", "hf_\x7f"])
def test_what_can_be_no_token_is_refused_unseen(text: str) -> None:
    """A token that no header can carry is refused by its variable's name; its text is not shown."""
    with pytest.raises(TokenRefusedError, match="what HF_TOKEN holds is no token") as caught:
        find_account({"HF_TOKEN": text})
    assert text not in str(caught.value)


def test_a_secret_shows_nothing() -> None:
    """Neither its text forms nor those of what holds it contain a secret, and it is not pickled."""
    import copy
    import pickle

    secret = Secret("hf_abc")
    held = Account(token=secret)

    assert "hf_abc" not in f"{secret} {secret!r} {held} {held!r}"
    assert secret.hide_in("Bearer hf_abc!") == "Bearer ***!"
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            write(secret)
