"""A resume continues the same run or says what changed; nothing is mixed in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from trainer.__main__ import main
from trainer.config import TrainerConfig, load_config
from trainer.errors import ConfigError
from trainer.rundir.fingerprint import (
    CHANGEABLE,
    compare,
    directory_sha256,
    flatten_config,
    take_fingerprint,
)


def config(**tables: Any) -> TrainerConfig:
    """Return the tiny config with changed fields."""
    raw = tiny.make_config(Path("model"), Path("train.jsonl"), **tables)
    return TrainerConfig.model_validate(raw)


def facts(made: TrainerConfig | None = None, /, **changes: Any) -> dict[str, Any]:
    """Return a fingerprint; `changes` replaces one of its parts."""
    taken = take_fingerprint(
        made or config(),
        data={"data.train": "a" * 64, "data.eval": None},
        base={"base.model": "b" * 64, "base.tokenizer": "c" * 64},
        hardware={"device": "cpu", "cpu": "One", "threads": 1},
    )
    return {**json.loads(json.dumps(taken)), **changes}


def test_the_same_run_goes_on() -> None:
    """Nothing changed: nothing refused, and exact."""
    verdict = compare(facts(), facts(), allowed=())
    verdict.require()

    assert (verdict.refused, verdict.inexact) == ((), ())


def test_every_change_is_listed_at_once_and_readable() -> None:
    """Changed fields are refused together, each with before, after and the way out."""
    other = config(train={"lr": 0.5, "steps": 20}, method={"r": 8})
    verdict = compare(facts(), facts(other), allowed=())

    with pytest.raises(ConfigError) as caught:
        verdict.require()
    text = str(caught.value)
    assert "method.r: was 4, is 8 (this may never change)" in text
    assert "train.lr: was 0.01, is 0.5\n" in text
    assert "train.steps: was 12, is 20" in text
    assert "--allow-change KEY" in text


def test_allowed_changes_go_on_but_not_exactly() -> None:
    """A change the user asked for is accepted by its short or full name, and is not bit-exact."""
    other = facts(config(train={"lr": 0.5, "steps": 20}))
    verdict = compare(facts(), other, allowed=("steps", "train.lr"))

    assert verdict.refused == ()
    assert [line.split(":")[0] for line in verdict.inexact] == ["train.lr", "train.steps"]


def test_steps_may_give_way_to_epochs() -> None:
    """Allowing one of the two names of the run's length allows the other."""
    other = facts(config(train={"steps": None, "epochs": 3}))

    assert compare(facts(), other, allowed=("epochs",)).refused == ()


def test_an_allowed_change_of_the_evaluation_stays_exact() -> None:
    """How the result is scored has no influence on its bits."""
    scored = config(eval={"kind": "label", "labels": ["a", "b"]}, data={"eval": "eval.jsonl"})
    verdict = compare(facts(), facts(scored), allowed=("eval",))

    assert (verdict.refused, verdict.inexact) == ((), ())


@pytest.mark.parametrize("key", ["r", "method.r", "seed", "data.train", "prompt", "nonsense"])
def test_what_would_be_another_run_cannot_be_allowed(key: str) -> None:
    """Allowing a key that may never change is itself refused, with the list of those that may."""
    with pytest.raises(ConfigError, match=r"what may: .*train\.steps"):
        compare(facts(), facts(), allowed=(key,))


@pytest.mark.parametrize("part", ["data", "base"])
def test_changed_content_is_refused(part: str) -> None:
    """Another data file, base or tokenizer is another run."""
    changed = dict.fromkeys(facts()[part], "d" * 64)
    verdict = compare(facts(), facts(**{part: changed}), allowed=())

    assert len(verdict.refused) == 2


@pytest.mark.parametrize("part", ["hardware", "versions"])
def test_other_hardware_or_versions_go_on_inexactly(part: str) -> None:
    """The same state on other hardware or libraries continues, and says what differs."""
    changed = {**facts()[part], "new": "thing"}
    verdict = compare(facts(), facts(**{part: changed}), allowed=())

    assert verdict.refused == ()
    assert verdict.inexact == ('new: was nothing, is "thing"',)


def test_where_files_lie_does_not_matter() -> None:
    """The same contents under other paths, or saved at another rhythm, are the same run."""
    moved = config(
        model={"id": "/elsewhere"}, data={"train": "/other.jsonl"}, checkpoint={"every": "auto"}
    )

    assert flatten_config(config()) == flatten_config(moved)


def test_what_may_change_exists() -> None:
    """Every changeable key is a field or a table of the config."""
    scored = config(
        eval={"kind": "label", "labels": ["a"]}, data={"eval": "eval.jsonl"}, train={"exact": False}
    )
    keys = {*flatten_config(scored), "eval", "data.eval"}

    assert keys >= CHANGEABLE


def test_the_hash_of_a_base_is_cached_and_follows_its_files(tmp_path: Path) -> None:
    """A directory is hashed once; changing, adding or renaming a file changes its hash."""
    root, cache = tmp_path / "model", tmp_path / "cache.json"
    root.mkdir()
    (root / "a").write_text("1")
    first = directory_sha256(root, cache=cache)
    entry = json.loads(cache.read_text())
    assert first == directory_sha256(root, cache=cache)
    (root / "a").write_text("2")
    os.utime(root / "a", ns=(1, 1))
    second = directory_sha256(root, cache=cache)
    (root / "b").write_text("")
    third = directory_sha256(root, cache=cache)
    (root / "b").rename(root / "c")

    assert len(entry) == 1
    assert len({first, second, third, directory_sha256(root, cache=cache)}) == 4


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run directory with a finished run of four steps whose adapter was taken away."""
    run = tiny.make_run(
        tmp_path_factory.mktemp("stopped"), rows=8, train={"steps": 4}, checkpoint={"every": 2}
    )
    assert main(["train", "--run-dir", str(run)]) == 0
    for path in (run / "adapter").iterdir():
        path.unlink()
    (run / "adapter").rmdir()
    return run


def test_a_run_whose_rows_changed_is_not_resumed(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one letter changed in the data the trainer ends with 78 and names the file."""
    rows = stopped.parent / "train.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("sky", "sea", 1))
    code = main(["train", "--run-dir", str(stopped)])
    rows.write_text(before)
    messages = capsys.readouterr().err

    assert code == 78
    assert "data.train: was" in messages
    assert "Traceback" not in messages
    assert load_config(stopped / "config.json").train.steps == 4


def test_a_run_is_prolonged_only_on_request(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More steps are refused, then allowed by name, and the status says from where on."""
    raw = json.loads((stopped / "config.json").read_text())
    raw["train"]["steps"] = 6
    tiny.write_config(stopped, raw)
    refused = main(["train", "--run-dir", str(stopped)])
    messages = capsys.readouterr().err
    allowed = main(["train", "--run-dir", str(stopped), "--allow-change", "steps"])
    status = json.loads((stopped / "status.json").read_text())

    assert (refused, allowed) == (78, 0)
    assert "train.steps: was 4, is 6" in messages
    assert (status["resumed_from"], status["exact"], status["inexact_from"]) == (4, False, 5)
    assert [record["step"] for record in tiny.losses(stopped)] == [1, 2, 3, 4, 5, 6]
