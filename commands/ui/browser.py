"""Opens a page in the browser of whoever sits at this computer, if anybody does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME")
"""Any of them says that a page can be shown on Linux; else a browser in text would be started."""


def open_page(
    url: str,
    *,
    environment: Mapping[str, str],
    platform: str,
    opener: Callable[[str], bool] | None = None,
) -> str:
    """Open a page; return why that was not done, empty if it was. Never raises.

    `opener` is `webbrowser.open` by default, which is imported only then.
    """
    if environment.get("SSH_CONNECTION") and not environment.get("BROWSER"):
        return "this is a session over SSH"
    if platform.startswith("linux") and not any(environment.get(name) for name in DISPLAYS):
        return "this computer has no display"
    if opener is None:
        import webbrowser

        opener = webbrowser.open
    try:
        opened = opener(url)
    except Exception as error:  # noqa: BLE001  (of whatever browser; the page is there all the same)
        return f"the browser did not start ({type(error).__name__}: {error})"
    return "" if opened else "no browser was found"
