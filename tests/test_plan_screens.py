"""The screens of `qft plan` in docs/plan.md and the README are those of a simulated cloud.

`make screens` writes them anew.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.harness import T4, azure
from arm.runner import CliRunner, cli_runner
from support.tiny import ROOT

PAGE = ROOT / "docs" / "plan.md"
README = ROOT / "README.md"
WRITE = "QFT_WRITE_SCREENS"
"""Set to write the screens into the page instead of comparing them."""
SCREEN = re.compile(
    r"(?P<head><!-- screen: (?P<recipe>\S+) (?P<columns>\d+)(?P<options>[^>]*) -->\n\n```text\n)"
    r"(?P<shown>.*?)```",
    re.DOTALL,
)
SUMMARY = re.compile(r"^memory {3}\S.*\nhours {4}\S.*\ndollars  \S.*\n", re.MULTILINE)
"""The three lines with which a wide screen begins."""


@pytest.fixture
def runner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CliRunner]:
    """A command line on a simulated Azure whose regions differ in price, band and quota."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no hub"))
    folder = tmp_path / "project"
    folder.mkdir()
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(folder, tmp_path / "home", harness, capsys) as runner,
    ):
        market = harness.cloud.market
        market.prices[T4.lower(), "eastus"] = 0.1612
        market.bands |= {(T4.lower(), "westus2"): "0-5", (T4.lower(), "eastus"): "5-10"}
        market.cores["southcentralus"] = 3
        yield runner


def plan(runner: CliRunner, screen: re.Match[str]) -> str:
    """Print the plan of a recipe in a terminal of that width; `key=value` changes a key."""
    config = (ROOT / "examples" / screen["recipe"] / "run.yaml").read_text(encoding="utf-8")
    options = screen["options"].split()
    for change in [one for one in options if "=" in one]:
        key, _, value = change.partition("=")
        config, changed = re.subn(rf"\b{key}: +[^,}}\n]+", f"{key}: {value}", config)
        assert changed == 1, change
    shutil.rmtree(runner.home, ignore_errors=True)
    Path("run.yaml").write_text(config, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", screen["columns"])
        return runner.qft("plan", *(one for one in options if "=" not in one)).out


def summary(screens: list[re.Match[str]]) -> str:
    """Return the three lines of the first screen that is wide enough for them."""
    wide = next(one["shown"] for one in screens if one["columns"] == "100")
    found = SUMMARY.search(wide)
    assert found
    return found[0]


def test_the_page_shows_what_the_program_prints(runner: CliRunner) -> None:
    """Each block after a comment `screen: RECIPE COLUMNS` is that plan, and none is wider.

    The README has the three lines of one.
    """
    page = PAGE.read_text(encoding="utf-8")
    screens = list(SCREEN.finditer(page))
    printed = {screen.start(): plan(runner, screen) for screen in screens}
    if os.environ.get(WRITE):
        page = SCREEN.sub(lambda one: f"{one['head']}{printed[one.start()]}```", page)
        PAGE.write_text(page, encoding="utf-8")
        screens = list(SCREEN.finditer(page))

        readme = README.read_text(encoding="utf-8")
        README.write_text(SUMMARY.sub(summary(screens), readme), encoding="utf-8")

    assert SUMMARY.findall(README.read_text(encoding="utf-8")) == [summary(screens)]
    assert {int(one["columns"]) for one in screens} == {80, 100}
    for screen, text in zip(screens, printed.values(), strict=True):
        lines = [line for line in text.splitlines() if len(line.split()) > 1]
        assert max(len(line) for line in lines) <= int(screen["columns"])
        assert screen["shown"] == text, "`make screens` writes the screens anew"
