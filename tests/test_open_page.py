"""`--open` shows a page where somebody sits at a screen, and says why not anywhere else."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping

import pytest

from commands.ui.browser import open_page

URL = "http://127.0.0.1:9/token/"
DESKTOP = {"DISPLAY": ":0"}


@pytest.mark.parametrize(
    ("environment", "platform"),
    [
        (DESKTOP, "linux"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux"),
        ({"WSL_DISTRO_NAME": "Ubuntu"}, "linux"),
        ({"BROWSER": "firefox", "SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, "linux"),
        ({}, "darwin"),
        ({}, "win32"),
    ],
)
def test_a_page_is_opened_where_there_is_a_screen(
    environment: Mapping[str, str], platform: str
) -> None:
    """The browser gets the address as it is, and nothing is left to say."""
    opened: list[str] = []

    def opener(url: str) -> bool:
        opened.append(url)
        return True

    assert open_page(URL, environment=environment, platform=platform, opener=opener) == ""
    assert opened == [URL]


@pytest.mark.parametrize(
    ("environment", "platform", "why"),
    [
        ({}, "linux", "this computer has no display"),
        ({**DESKTOP, "SSH_CONNECTION": "1.2.3.4"}, "linux", "this is a session over SSH"),
        ({"SSH_CONNECTION": "1.2.3.4"}, "darwin", "this is a session over SSH"),
    ],
)
def test_no_browser_in_text_takes_the_terminal(
    environment: Mapping[str, str], platform: str, why: str
) -> None:
    """Where nobody could see a page, no program is started at all."""

    def opener(url: str) -> bool:
        raise AssertionError(url)

    assert open_page(URL, environment=environment, platform=platform, opener=opener) == why


def test_a_browser_that_fails_is_no_failure_of_ours() -> None:
    """None found, or one that raises: the reason is returned, and the page is there."""

    def broken(_url: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    def refuse(_url: str) -> bool:
        return False

    assert open_page(URL, environment=DESKTOP, platform="linux", opener=refuse) == (
        "no browser was found"
    )
    assert "could not locate runnable browser" in open_page(
        URL, environment=DESKTOP, platform="linux", opener=broken
    )
