"""What docs/local.md shows is what the program takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from infra.config import VmTable
from infra.local.market import read_market

PAGE = (Path(__file__).parents[1] / "docs" / "local.md").read_text()


def block(language: str) -> str:
    """The page's one block in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(found)


def test_market_of_the_page_is_a_market(tmp_path: Path) -> None:
    """The example market is read, and its first change comes after a minute."""
    file = tmp_path / "market.json"
    file.write_text(block("json"))
    start = 1795330800.0  # 2026-11-22T07:00:00Z

    assert read_market(file, start).price("local-1", "T4") == 0.149
    assert read_market(file, start + 60).price("local-1", "T4") == 0.4
    assert json.loads(block("json"))["version"] == 1


def test_config_of_the_page_is_a_config() -> None:
    """The example table is accepted as it stands."""
    table = VmTable.model_validate(yaml.safe_load(block("yaml"))["vm"])

    assert (table.provider, table.local.notice_s, table.local.evict_after_s) == ("local", 5, [60])
    assert table.local.vendor == "azure"


def test_files_of_the_page_are_the_files(tmp_path: Path) -> None:
    """Every file that the page names exists in the program's words, and none is left out."""
    named = set(re.findall(r"`([a-z]+\.json|host_key|guest\.log)`", PAGE)) - {"market.json"}
    rooms = Path(__file__).parents[1] / "infra"
    text = "".join((rooms / name).read_text() for name in ("local/provider.py", "local/machine.py"))
    used = set(re.findall(r'"([a-z]+\.json|host_key|guest\.log)"', text)) - {"market.json"}

    assert named == used
