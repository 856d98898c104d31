"""Limits of memory are read wherever they are kept, and a base that cannot load is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from trainer.device.host_memory import (
    FreeMemory,
    free_memory,
    is_tight,
    machine_bytes,
    resident_bytes,
    watched_peak,
)
from trainer.errors import DoesNotFit
from trainer.estimate.host import PROCESS_BYTES, WeightFile, host_bytes_needed, loading_bytes
from trainer.job.weight_files import require_host_memory, weight_files

GIB = 1 << 30


def system(root: Path, files: dict[str, str]) -> Path:
    """Lay out the files of a system with 64 GiB, of which 60 are free."""
    meminfo = f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_the_memory_of_the_machine_counts(tmp_path: Path) -> None:
    """What is available, not what is free: the kernel gives back what it keeps of files."""
    root = system(tmp_path, {})

    assert free_memory(root) == FreeMemory(
        bytes=60 * GIB, limit="the memory of this machine", limit_bytes=64 * GIB, own=False
    )
    assert machine_bytes(root) == 64 * GIB
    assert not is_tight(root)


def test_the_tightest_group_above_a_process_holds(tmp_path: Path) -> None:
    """Of version 2, each group above has its limit; pages of files that can go count as free."""
    root = system(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/run.scope\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": (
                f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\nfile_mapped {GIB}\n\n"
            ),
            "sys/fs/cgroup/user.slice/run.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/run.scope/memory.current": f"{3 * GIB}\n",
        },
    )
    found = free_memory(root)

    assert found is not None
    assert (found.bytes, found.limit_bytes) == (6 * GIB, 8 * GIB)
    assert found.limit == "the limit of the control group"
    assert is_tight(root)


def test_a_container_of_version_1_has_its_limit_at_the_top(tmp_path: Path) -> None:
    """There the path is the host's, and what is mounted is the container's own group."""
    top = "sys/fs/cgroup/memory"
    root = system(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n0::/\n",
            f"{top}/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{top}/memory.usage_in_bytes": f"{GIB}\n",
            f"{top}/memory.stat": "total_inactive_file 512\ntotal_active_file 512\n",
        },
    )
    found = free_memory(root)

    assert found is not None
    assert (found.bytes, found.limit_bytes) == (GIB + 1024, 2 * GIB)
    (root / top / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    unlimited = free_memory(root)
    assert unlimited is not None
    assert not unlimited.own


def test_the_peak_of_a_stretch_is_seen_although_it_is_over() -> None:
    """What was taken and given back inside counts, what was taken before does not."""
    held = torch.ones(64 << 18)  # 64 MiB
    with watched_peak() as peak:
        torch.ones(64 << 18).sum()
    rest = resident_bytes()

    assert 60 << 20 < peak.extra < 100 << 20
    assert peak.peak >= peak.before > held.nbytes
    assert rest > 0


def test_where_the_kernel_keeps_no_peak_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that may not begin the record anew, a thread looks again and again."""
    monkeypatch.setattr("trainer.device.host_memory._reset_peak", lambda: False)
    with watched_peak() as peak:
        for _ in range(20):
            torch.ones(64 << 18).sum()

    assert peak.extra > 30 << 20


def test_mapped_files_take_little_and_old_pickles_all() -> None:
    """An 11 B base loads on 16 GB as safetensors, and not as pickles of before 2020."""
    shards = [WeightFile(size=9 * 10**9, largest=526_000_000) for _ in range(5)]
    pickles = [WeightFile(size=45 * 10**9, mapped=False, largest=526_000_000)]

    assert host_bytes_needed(shards, quantised=True) < 16e9
    assert host_bytes_needed(shards, quantised=False) < 16e9
    assert host_bytes_needed(pickles, quantised=True) > 45e9
    assert host_bytes_needed(shards, quantised=True) == PROCESS_BYTES + 2 * 526_000_000
    assert loading_bytes(shards, quantised=True, kept_bytes=7e9) > 7e9


def test_the_files_of_a_base_show_what_they_need(tmp_path: Path) -> None:
    """Sizes, the largest tensor, and whether a pickle is of the kind that can be mapped."""
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100), "b": torch.zeros(1000)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(10)}, tmp_path / "pytorch_model.bin")
    both = weight_files(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    new = weight_files(tmp_path)
    torch.save(
        {"a": torch.zeros(10)},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    old = weight_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"torn")

    assert [(one.largest, one.mapped) for one in both] == [(4000, True)]
    assert [one.mapped for one in new] == [True]
    assert [one.mapped for one in old] == [False]
    assert [one.largest for one in weight_files(tmp_path)] == [None]
    assert weight_files(tmp_path / "nowhere") == []


def test_a_base_that_the_host_cannot_load_is_refused_before_it_is_read() -> None:
    """The words name need, memory and limit, and what to do; what fits is let pass."""
    free = FreeMemory(bytes=14 * 10**9, limit="the memory of this machine", limit_bytes=16 * 10**9)
    pickles = [WeightFile(size=22 * 10**9, mapped=False, largest=10**9)]

    with pytest.raises(DoesNotFit) as refused:
        require_host_memory(pickles, free, quantised=True)
    assert str(refused.value) == (
        "loading the base takes about 24.0 GB of this machine's own memory (22.0 GB are pickles of "
        "an old format, which have to be read whole; save the base as safetensors), and 14.0 GB "
        "are free of 16.0 GB: the memory of this machine; take a machine with more memory, or a "
        "smaller base"
    )
    require_host_memory([WeightFile(size=22 * 10**9, largest=10**9)], free, quantised=True)
    require_host_memory(pickles, None, quantised=True)
