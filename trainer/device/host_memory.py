"""Says how much memory this process may still take, which limit holds, and how much it took.

Limits are those of the control group (versions 1 and 2, and of every group above it), of the
process (`ulimit -v` and `-d`), and the memory that is free on the machine. Nothing heavy is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/")
ADDRESS_SPACE = "the limit of this process (`ulimit -v`)"
KIB = 1024
UNLIMITED = 1 << 60
"""Of a control group of version 1, which has no word for it: no machine has so much."""
SAMPLE_S = 0.002


@dataclass(frozen=True, kw_only=True)
class FreeMemory:
    """What a process may still take before `limit` stops it, and the whole of that limit."""

    bytes: int
    limit: str
    """In words, such as `the memory of this machine`."""
    limit_bytes: int
    own: bool = True
    """Whether the limit is for this process or its group, not for all that runs here."""


TIGHT_BYTES = 8 << 30
"""With less free memory than this, a training on the processor is careful with it."""


def is_tight(root: Path = ROOT) -> bool:
    """Tell whether little is free, under whatever limit."""
    found = free_memory(root)
    return found is not None and found.bytes < TIGHT_BYTES


def free_memory(root: Path = ROOT) -> FreeMemory | None:
    """Return the tightest of all limits; None where the system does not say.

    What the kernel keeps of files, and can drop, counts as free. `root` is where `/proc` and `/sys`
    are looked for.
    """
    found = [*_of_machine(root), *_of_process(root), *_of_groups(root)]
    return min(found, key=lambda one: one.bytes, default=None)


def address_space(root: Path = ROOT) -> FreeMemory | None:
    """Return what `ulimit -v` leaves; None if it is not set."""
    return next((one for one in _of_process(root) if one.limit == ADDRESS_SPACE), None)


def machine_bytes(root: Path = ROOT) -> int | None:
    """Return how much memory a process may have here in all: of the machine, or of a group."""
    whole = [one.limit_bytes for one in (*_of_machine(root), *_of_groups(root))]
    return min(whole, default=None)


def _of_machine(root: Path) -> Iterator[FreeMemory]:
    facts = _table(root / "proc/meminfo")
    if "MemAvailable" in facts:
        yield FreeMemory(
            bytes=facts["MemAvailable"] * KIB,
            limit="the memory of this machine",
            limit_bytes=facts.get("MemTotal", 0) * KIB,
            own=False,
        )
    elif not facts:
        import psutil  # a system without /proc

        memory = psutil.virtual_memory()
        yield FreeMemory(
            bytes=memory.available,
            limit="the memory of this machine",
            limit_bytes=memory.total,
            own=False,
        )


def _of_process(root: Path) -> Iterator[FreeMemory]:
    try:
        import resource
    except ImportError:  # not a Unix
        return
    facts = _table(root / "proc/self/status")
    for kind, name, used in (
        (resource.RLIMIT_AS, ADDRESS_SPACE, "VmSize"),
        (resource.RLIMIT_DATA, "the limit of this process (`ulimit -d`)", "VmData"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and used in facts:
            free = max(0, limit - facts[used] * KIB)
            yield FreeMemory(bytes=free, limit=name, limit_bytes=limit)


def _of_groups(root: Path) -> Iterator[FreeMemory]:
    """Yield the limits of the control group of this process, and of those above it."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        tops: tuple[str, ...]
        if number == "0" and not controllers:
            tops, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _VERSION_2
        elif "memory" in controllers.split(","):
            tops, names = ("sys/fs/cgroup/memory",), _VERSION_1
        else:
            continue
        for top in tops:
            # In a container the path may be the host's name of what is mounted at the top here.
            parts = [one for one in path.split("/") if one not in {"", ".."}]
            for depth in range(len(parts), -1, -1):
                yield from _of_group((root / top).joinpath(*parts[:depth]), names)


@dataclass(frozen=True, kw_only=True)
class _Names:
    """The files of a version of control groups, and the words of its `memory.stat`."""

    limit: str
    used: str
    droppable: tuple[str, str]
    mapped: str


_VERSION_2 = _Names(
    limit="memory.max",
    used="memory.current",
    droppable=("inactive_file", "active_file"),
    mapped="file_mapped",
)
_VERSION_1 = _Names(
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    droppable=("total_inactive_file", "total_active_file"),
    mapped="total_mapped_file",
)


def _of_group(group: Path, names: _Names) -> Iterator[FreeMemory]:
    limit = _number(group / names.limit)  # None at the root, and for the word `max`
    used = _number(group / names.used)
    if limit is None or used is None or limit >= UNLIMITED:
        return
    stat = _table(group / "memory.stat")
    files = sum(stat.get(one, 0) for one in names.droppable) - stat.get(names.mapped, 0)
    yield FreeMemory(
        bytes=max(0, limit - used + max(0, files)),
        limit="the limit of the control group",
        limit_bytes=limit,
    )


def resident_bytes(root: Path = ROOT) -> int:
    """Return what this process has in memory now; 0 where the system does not say."""
    return _table(root / "proc/self/status").get("VmRSS", 0) * KIB


@dataclass
class PeakMemory:
    """The most that this process had in memory while it was watched."""

    before: int = 0
    peak: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def extra(self) -> int:
        """The most that was there beyond what was there before."""
        return max(0, self.peak - self.before)

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.peak = max(self.peak, resident_bytes())


@contextmanager
def watched_peak() -> Iterator[PeakMemory]:
    """Measure the peak of the resident memory while inside, also if an error leaves it.

    The kernel keeps it, and begins anew when told so; where it may not be, it is sampled instead.
    """
    found = PeakMemory(before=resident_bytes())
    found.peak = found.before
    exact = _reset_peak()
    sampler = threading.Thread(target=found._sample, name="peak-memory", daemon=True)  # noqa: SLF001
    if not exact:
        sampler.start()
    try:
        yield found
    finally:
        if exact:
            found.peak = max(found.before, _table(ROOT / "proc/self/status").get("VmHWM", 0) * KIB)
        else:
            found._ended.set()  # noqa: SLF001
            sampler.join()
            found.peak = max(found.peak, resident_bytes())


def _reset_peak() -> bool:
    """Begin the kernel's record of the peak anew; tell whether it can be."""
    try:
        (ROOT / "proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    facts = _table(ROOT / "proc/self/status")
    return "VmHWM" in facts and facts["VmHWM"] - facts["VmRSS"] < 64 * KIB  # 64 MiB


def _table(path: Path) -> Mapping[str, int]:
    """Return the numbers of lines such as `VmRSS:  1234 kB` or `inactive_file 56`."""
    found = {}
    for line in _lines(path):
        match line.replace(":", " ").split():
            case [name, number, *_] if number.isdecimal():
                found[name] = int(number)
    return found


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, or a group of another version
        return []
