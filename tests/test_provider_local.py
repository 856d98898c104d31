"""The spot cloud on this computer keeps the promises of every provider, and its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import Harness, RentingContract

from infra.local import LocalProvider, LocalSettings
from infra.provider import Provider


class LocalHarness:
    """A spot cloud in a temporary directory, in real time."""

    def __init__(self, root: Path, settings: LocalSettings) -> None:
        self.root = root
        self.settings = settings
        self.regions = ("local-1", "local-2")
        self._market: dict[str, dict[str, Any]] = {region: {} for region in self.regions}

    def provider(self) -> Provider:
        """A provider that knows nothing but the directory."""
        return LocalProvider(self.root, settings=self.settings)

    def advance(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Write the market anew."""
        self._market[region]["capacity"] = free
        self._write()

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Write the market anew."""
        self._market[region]["spot_usd_per_h"] = usd_per_h
        self._write()

    def _write(self) -> None:
        self.root.mkdir(exist_ok=True)
        temporary = self.root / "market.new"
        temporary.write_text(json.dumps({"version": 1, "regions": self._market}))
        temporary.replace(self.root / "market.json")

    def close(self) -> None:
        """Leave no process behind."""
        provider = self.provider()
        for vm in provider.list_all():
            provider.delete(vm.run_id)


class TestLocal(RentingContract):
    """LocalProvider joins the contract."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A fresh cloud whose evictions come without notice."""
        harness = LocalHarness(tmp_path / "local", LocalSettings(notice_s=0))
        yield harness
        harness.close()
