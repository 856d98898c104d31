"""A step's record has memory and use of a CUDA card, and is unchanged on any other device."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.page_runs import write_run

from trainer.device import gpu_meter
from trainer.job.replay import Comparer
from trainer.pages.run_files import build_report


class Driver:
    """The three functions of NVIDIA's NVML that are called, for one card; they return its codes."""

    HANDLE = 0x123456789ABC

    def __init__(self, *, begun: int = 0) -> None:
        self._begun = begun

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's own name
        """Begin."""
        return self._begun

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        """Fill in the handle of a card; 6 is "not found"."""
        handle._obj.value = self.HANDLE
        return 0 if uuid == b"GPU-0123" else 6

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:  # noqa: N802
        """Fill in the percent; 2 is "invalid argument"."""
        found = ctypes.cast(rates, ctypes.POINTER(ctypes.c_uint))
        found[0], found[1] = 87, 40
        return 0 if handle.value == self.HANDLE else 2


def test_the_use_of_a_card_is_read_from_its_driver() -> None:
    """The card is found by its UUID, and percent become a share."""
    assert gpu_meter.use_reader(Driver(), "GPU-0123")() == 0.87


def test_a_card_without_a_figure_of_its_driver_has_no_use() -> None:
    """An unknown UUID, such as of a part of a card, or no driver: no figure, and no error."""
    assert gpu_meter.use_reader(Driver(), "GPU-other")() is None
    assert gpu_meter.use_reader(Driver(begun=9), "GPU-0123")() is None


def test_another_device_adds_nothing_to_the_log() -> None:
    """On a processor a record has the fields, and so the log the bytes, that it had."""
    assert gpu_meter.gpu_meter(torch.device("cpu"))() == {}


def test_a_card_without_the_drivers_library_still_has_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peak of each step is measured from the step before, and the use is left out."""
    calls: list[str] = []
    monkeypatch.setattr(gpu_meter, "NVML", "libno-such-library.so.9")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 7)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _d: calls.append("reset"))
    measure = gpu_meter.gpu_meter(torch.device("cuda"))

    assert measure() == measure() == {"gpu_memory_bytes": 7}
    assert calls == ["reset", "reset"]


def test_measured_fields_do_not_make_a_replay_differ() -> None:
    """Time, memory and use of a step may be others when it is repeated; its loss may not."""
    logged: dict[str, Any] = {"step": 1, "loss": 1.0, "seconds": 1, "gpu_memory_bytes": 5}
    comparer = Comparer(logged={1: logged})
    comparer.after_step({**logged, "seconds": 2, "gpu_memory_bytes": 6, "gpu_use": 0.5})
    same = comparer.difference
    comparer.amend({**logged, "loss": 2.0})

    assert same is None
    assert comparer.difference is not None
    assert comparer.difference["key"] == "loss"


def test_the_report_reads_both_as_curves(tmp_path: Path) -> None:
    """What the log has of the card is in `report.json`; a log without it has empty curves."""
    run_dir = write_run(tmp_path / "run", [], steps=3)
    curves = build_report(run_dir)["curves"]
    line = json.dumps({"step": 1, "loss": 1.0, "gpu_use": "x", "gpu_memory_bytes": None})
    (run_dir / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")

    assert [at for at, _ in curves["gpu_use"]] == [1, 2, 3]
    assert curves["gpu_memory_bytes"][0] == [1, 9 * 10**9 + 1]
    assert build_report(run_dir)["curves"]["gpu_use"] == []
