"""A sign-in that runs out ends no training: it is followed over SSH until somebody mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakecloud import Story

from infra.errors import SignedOut
from infra.run.fold import fold
from infra.run.journal import Outcome, read


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run that has not begun."""
    return Story(path=tmp_path / "journal.jsonl")


def sign_out(story: Story, when: Callable[[], bool], patch: pytest.MonkeyPatch) -> list[str]:
    """Let the cloud refuse every question as long as `when` holds; return what it was asked."""
    requested: list[str] = []
    for name in ("observe", "create", "start", "deallocate", "delete"):
        real = getattr(story.cloud, name)

        def call(*given: object, real: Callable[..., object] = real, name: str = name) -> object:
            if when():
                requested.append(name)
                raise SignedOut("the sign-in has expired", hint="`az login`")
            return real(*given)

        patch.setattr(story.cloud, name, call)
    return requested


def test_training_goes_on_until_somebody_signs_in_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver says once what to type, asks once a minute, and ends as if nothing had been."""
    story.work.steps = 500
    requested = sign_out(story, lambda: 10 <= story.work.home < 310, monkeypatch)

    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "delete"]
    assert set(requested) == {"observe"}
    assert 3 <= len(requested) <= 7
    (warning, over) = story.warnings
    assert "sign in again in another terminal (`az login`)" in warning
    assert "goes on working and billing" in warning
    assert over == ""


def test_adapter_comes_home_although_nobody_signs_in_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what needs the cloud is left undone, and the same command does it later."""
    signed_out = True
    sign_out(story, lambda: signed_out and story.work.home >= 10, monkeypatch)

    with pytest.raises(SignedOut):
        story.go()
    left = fold(read(story.path))
    signed_out = False
    ending = story.go()

    assert (left.fetched, left.deleted) == (story.work.out, False)
    assert ending.outcome is Outcome.DONE
    assert story.cloud.log == ["create a", "delete"]


@pytest.mark.parametrize("until", ["there is a machine", "the machine answers", "patience ends"])
def test_run_ends_where_nothing_can_be_followed(
    story: Story, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    """Without a machine that answers nobody is waited for, and with one not for ever."""
    story.policy = replace(story.policy, offline_max_s=120.0)
    story.work.steps = 500
    signed_out = {
        "there is a machine": lambda: True,
        "the machine answers": lambda: story.cloud.created > 0,
        "patience ends": lambda: story.work.home >= 10,
    }[until]
    sign_out(story, signed_out, monkeypatch)
    began_s = story.world.now_s

    with pytest.raises(SignedOut, match="the sign-in has expired"):
        story.go()

    assert story.world.now_s - began_s < 300
    assert not fold(read(story.path)).trained
