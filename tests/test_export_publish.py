"""Publishing sends the model and its card to a hub, and the token nowhere else."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import support.hub as hubs
import torch
from huggingface_hub import get_session
from safetensors.torch import load, save_file
from support.rig import rig
from support.tiny import make_config, make_run, write_config

from trainer.__main__ import main
from trainer.adapters import methods
from trainer.adapters.nola import expand
from trainer.results import publish


@pytest.fixture
def hub() -> Iterator[hubs.Hub]:
    """A hub on loopback."""
    with hubs.running() as running:
        yield running


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run with an adapter, beside things that are nobody's business."""
    config = make_config(tmp_path / "secret place" / "model", tmp_path / "rows.jsonl")
    config["data"]["prompt"] = "```{text}```"
    directory = write_config(tmp_path / "run", config)
    (directory / "adapter").mkdir()
    save_file({"a": torch.arange(4.0)}, directory / "adapter" / "adapter_model.safetensors")
    for name in ("adapter_config.json", "qft.json"):
        (directory / "adapter" / name).write_text("{}", encoding="utf-8")
    (directory / "adapter" / "README.md").write_text("made by somebody else", encoding="utf-8")
    (directory / "adapter" / "optimizer.safetensors").write_bytes(b"moments")
    steps = [{"step": at, "loss": 1.0, "tokens": 8, "seconds": 36.0} for at in range(1, 13)]
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return directory


# huggingface_hub 2.4 uploads with an argument that its HTTP library is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_weights_and_card_arrive_and_nothing_else(
    hub: hubs.Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Files come byte for byte, the card is ours, and the token appears in no output or file."""
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    facts = run_dir / "facts.json"
    facts.write_text('{"usd": 0.034, "listed": true, "evictions": [{"step": 3}]}')
    caplog.set_level(logging.DEBUG)
    code = main(
        ["publish", "--run-dir", str(run_dir), "--repo", "me/model", "--endpoint", hub.endpoint,
         "--facts", str(facts)]
    )  # fmt: skip
    output = capsys.readouterr()

    assert code == 0, output.err
    assert output.out == f"{hub.endpoint}/me/model\n"
    assert set(hub.files) == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    weights = (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert hub.created[0]["visibility"] == "private"
    assert hub.commits == ["Add the model and its card"]
    model_card = hub.files["README.md"].decode()
    assert model_card.startswith("---\nlibrary_name: peft\n")
    assert "# model, fine-tuned (adapter)" in model_card
    assert "- lora, rank 4, alpha 8, dropout 0.1, base stored as none" in model_card
    assert "- 12 optimizer steps of 4 sequences" in model_card
    assert (
        "- 0.12 hours of training steps\n- 0.03 USD at the listed price\n- 1 evictions"
        in model_card
    )
    assert "\n````\n```{text}```" in model_card  # the template cannot end the block it stands in
    assert "secret place" not in model_card
    everything = output.out + output.err + caplog.text + "".join(map(repr, hub.files.values()))
    assert hubs.TOKEN not in everything


def test_a_refusal_is_reported_without_the_token(
    hub: hubs.Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A wrong token is named as the likely cause, and not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_wrongOfTheTest")
    code = main(
        ["publish", "--run-dir", str(run_dir), "--repo", "me/model", "--endpoint", hub.endpoint]
    )
    output = capsys.readouterr().err

    assert code == 78
    assert "the hub refused: Client error '401 Unauthorized'" in output
    assert "hint: check that HF_TOKEN may write to me/model" in output
    assert "hf_wrongOfTheTest" not in output
    assert hub.refused > 0
    assert hub.files == {}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_token_that_makes_no_repositories_writes_to_one_that_is_there(
    hub: hubs.Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that forbids making the repository is still asked to take the commit."""
    hub.makes_none = True
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    code = main(
        ["publish", "--run-dir", str(run_dir), "--repo", "me/model", "--endpoint", hub.endpoint]
    )

    assert (code, len(hub.commits)) == (0, 1)


@pytest.mark.parametrize(
    "case",
    [
        ("me/model", 9, 74, "hint: nothing is half-published; the same command tries again"),
        ("a/b/c", None, 78, "`a/b/c` cannot name a model"),
        ("me/my model", None, 78, "hint: write --repo OWNER/MODEL"),
    ],
)
def test_a_silent_hub_and_a_bad_name_are_not_blamed_on_the_token(
    hub: hubs.Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], case: tuple[str, int | None, int, str],
) -> None:  # fmt: skip
    """Each trouble has the hint that mends it and its own exit code, and none shows the token."""
    repo, port, ends, output = case
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    endpoint = hub.endpoint if port is None else f"http://127.0.0.1:{port}"
    code = main(["publish", "--run-dir", str(run_dir), "--repo", repo, "--endpoint", endpoint])
    error = capsys.readouterr().err

    assert code == ends
    assert output in error
    assert "HF_TOKEN" not in error
    assert hubs.TOKEN not in error


def test_a_hub_that_takes_the_request_and_does_not_answer_is_given_up(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may take a while, and not for ever as the library would let it."""
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    monkeypatch.setattr(publish, "SILENCE_S", 0.2)
    monkeypatch.setattr(get_session(), "timeout", None)  # so that it gets back the one it has
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = main(
            ["publish", "--run-dir", str(run_dir), "--repo", "me/model", "--endpoint", endpoint]
        )

    assert code == 74
    assert "the hub does not answer as it should: " in capsys.readouterr().err


def test_without_a_token_or_weights_nothing_is_sent(
    hub: hubs.Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Both are told before the hub hears of it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    arguments = ["--run-dir", str(run_dir), "--repo", "me/model", "--endpoint", hub.endpoint]
    assert main(["publish", *arguments]) == 78
    assert "HF_TOKEN is not set" in capsys.readouterr().err

    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    for path in (run_dir / "adapter").glob("*.safetensors"):
        path.unlink()
    assert main(["publish", *arguments]) == 78
    assert "nothing to publish" in capsys.readouterr().err
    assert hub.created == []


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_nola_adapter_is_published_as_one_that_peft_loads(
    hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its matrices are sent, not its seed, and what lies at home stays as it is."""
    run = make_run(tmp_path, rows=4, method={"kind": "nola", "bases": 16})
    made = rig(run)
    (run / "adapter").mkdir()
    methods.method_of(made.context.model).save(run / "adapter")
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    before = sorted(path.name for path in (run / "adapter").iterdir())
    code = main(
        ["publish", "--run-dir", str(run), "--repo", "me/model", "--endpoint", hub.endpoint]
    )

    assert code == 0
    assert set(hub.files) == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    sent = load(hub.files["adapter_model.safetensors"])
    matrices = expand(run / "adapter")
    assert sent.keys() == matrices.keys()
    assert all(torch.equal(sent[name], matrices[name]) for name in sent)
    assert sorted(path.name for path in (run / "adapter").iterdir()) == before
