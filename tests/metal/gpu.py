"""The card and its driver: what `nvidia-smi` and CUDA answer in each state of the two."""

from __future__ import annotations

import sys

from metal.state import State, Store

CUDA_OF_BRANCH = {
    470: "11.4",
    525: "12.0",
    535: "12.2",
    550: "12.4",
    570: "12.8",
    580: "13.0",
    595: "13.2",
}
DRIVER_MIN = {12: (525, 60), 13: (580, 65)}
"""What each generation of CUDA needs; within one, older minor drivers do."""
VGPU_BRANCH = 570
"""What the hosts of Azure's A10 serve."""
SILENT = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running.\n"
)


def numbers(version: str) -> tuple[int, ...]:
    """Read `570.211.01` as numbers."""
    return tuple(int(part) for part in version.split("."))


def trouble(state: State) -> tuple[int, str]:
    """Exit code and words of `nvidia-smi` if it cannot list the card; (0, "") if it can."""
    if not state.loaded:
        return 9, SILENT
    if state.stray or state.loaded != state.driver:
        return 18, (
            "Failed to initialize NVML: Driver/library version mismatch\n"
            f"NVML library version: {'.'.join(state.driver.split('.')[:2])}\n"
        )
    if state.vgpu and not (state.grid and numbers(state.loaded)[0] == state.host):
        return 6, "No devices were found\n"
    if state.gone:
        return 15, (
            "Unable to determine the device handle for GPU0001:00:00.0: GPU is lost."
            "  Reboot the system to recover this GPU\n"
        )
    return 0, ""


def nvidia_smi(store: Store, arguments: list[str]) -> int:
    """Answer the one kind of question that is asked: a table of fields."""
    state = store.read()
    code, message = trouble(state)
    if code:
        sys.stdout.write(message)
        return code
    rows = {
        "name": state.gpu_name,
        "driver_version": state.loaded,
        "memory.total": f"{state.memory_mb} MiB",
        "compute_cap": state.capability,
    }
    query = next((one for one in arguments if one.startswith("--query-gpu=")), "")
    fields = query.removeprefix("--query-gpu=").split(",")
    style = next((one for one in arguments if one.startswith("--format=")), "").split("=")[-1]
    for one in fields:
        if one not in rows:
            sys.stdout.write(f'Field "{one}" is not a valid field to query.\n\n')
            return 2
    cells = [rows[one] for one in fields]
    if "nounits" in style:
        cells = [cell.removesuffix(" MiB") for cell in cells]
    if "noheader" not in style:
        sys.stdout.write(", ".join(fields) + "\n")
    sys.stdout.write((", ".join(cells) + "\n") * state.cards)
    if state.inforom_corrupted:
        sys.stdout.write(f"WARNING: infoROM is corrupted at gpu {BUS}.0\n")
    return 14 * state.inforom_corrupted


def cuda_trouble(store: Store, cuda: tuple[int, ...]) -> str:
    """Why a tensor does not reach the card with wheels for that CUDA; empty if it does."""
    with store.change() as state:
        code, _ = trouble(state)
        if code == 9:
            return (
                "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
                " and installed a driver from http://www.nvidia.com/Download/index.aspx"
            )
        if code:
            if state.vgpu:
                state.note(f"NVRM: Xid (PCI:{BUS}): 78, pid='<unknown>', Guest driver mismatch")
            return "No CUDA GPUs are available"
        if numbers(state.loaded)[:2] < DRIVER_MIN[cuda[0]]:
            found = numbers(CUDA_OF_BRANCH[numbers(state.loaded)[0]])
            return (
                "The NVIDIA driver on your system is too old (found version"
                f" {found[0]}{found[1]:02}0). CUDA driver version is insufficient for CUDA runtime"
                " version"
            )
        if state.xid_on_cuda:
            state.note(f"NVRM: Xid (PCI:{BUS}): {state.xid_on_cuda}, pid='<unknown>', name=python")
            state.gone = True
            return "CUDA error: unspecified launch failure"
    return ""


BUS = "0001:00:00"


def lspci(store: Store, _arguments: list[str]) -> int:
    """List the cards in numbers, driver or not."""
    state = store.read()
    for index in range(state.cards):
        sys.stdout.write(f"{index + 1:04}:00:00.0 0302: 10de:{state.pci} (rev a1)\n")
    return 0


def dmesg(store: Store, _arguments: list[str]) -> int:
    """Show what the kernel said, to root only, as Ubuntu does."""
    from metal.system import is_root

    if not is_root():
        sys.stderr.write("dmesg: read kernel buffer failed: Operation not permitted\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in store.read().kernel_log))
    return 0


def installer(store: Store, arguments: list[str]) -> int:
    """NVIDIA's installer, after its file name: replaces what an installer put there before."""
    name = arguments[0].removesuffix(".run")  # NVIDIA-Linux-x86_64-570.211.01-grid-azure
    grid = name.endswith("-grid-azure")
    version = name.removesuffix("-grid-azure").rpartition("-")[2]
    with store.change() as state:
        missing = {"build-essential", f"linux-headers-{state.kernel}"} - set(state.packages)
        if missing:
            sys.stdout.write(f"ERROR: Unable to find the kernel source tree: {sorted(missing)}\n")
            return 1
        state.done.append(f"{'GRID' if grid else 'driver'} installer {version}")
        state.stray = any(one.startswith("linux-modules-nvidia") for one in state.packages)
        state.driver, state.grid, state.by_file, state.signed = version, grid, True, False
        state.stuck = state.open = False
        state.loaded = ""  # built and put on the disk; this life's kernel has not taken it yet
    return 0


def uninstall(store: Store, _arguments: list[str]) -> int:
    """Remove what an installer of NVIDIA's put there."""
    with store.change() as state:
        state.done.append("nvidia-uninstall")
        state.stray = False
        if state.by_file:
            state.driver, state.loaded, state.by_file, state.grid = "", "", False, False
    return 0


def modinfo(store: Store, arguments: list[str]) -> int:
    """The licence of the driver's module on the disk, which tells the open from the closed."""
    state = store.read()
    if arguments != ["-F", "license", "nvidia"] or not state.driver:
        sys.stderr.write(f"modinfo: ERROR: Module {arguments[-1]} not found.\n")
        return 1
    sys.stdout.write("Dual MIT/GPL\n" if state.open else "NVIDIA\n")
    return 0
