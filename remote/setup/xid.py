"""What an NVIDIA driver means by the `Xid` numbers that it leaves in the kernel's log."""

from __future__ import annotations

import re

XID = re.compile(r"Xid\s*\([^)]*\)\s*:\s*(\d+)")

MEANINGS = {
    13: "a kernel made an illegal access or ran into an engine fault: mostly a bug in the program",
    31: "a kernel touched memory that is not its own: mostly a bug in the program or a library",
    32: "the card received a corrupted command stream: driver, PCI link or hardware",
    38: "the driver's firmware failed: usually a driver that does not fit the card or the kernel",
    43: "the card stopped a faulty program; the card itself is fine",
    45: "work was cancelled after an earlier error or a kill; look at the Xid before this one",
    48: "memory with an error that could not be corrected: take another machine",
    56: "the display engine failed: driver or hardware",
    61: "the card's micro-controller stopped: reboot, then take another machine",
    62: "the card's micro-controller halted: reboot, then take another machine",
    63: "a failing memory row was set aside: goes on, reboot when convenient",
    64: "a failing memory row could not be set aside: take another machine",
    69: "the graphics engine failed: mostly driver or hardware",
    74: "the link between cards failed: take another machine",
    78: "the guest's vGPU driver does not match the host's branch: install the branch that the host"
    " serves (570 on Azure's A10), as `qft up` does",
    79: "the card has fallen off the bus: reboot, then take another machine",
    92: "many correctable memory errors: watch it, or take another machine",
    94: "a memory error that stayed within one program: start it again",
    95: "a memory error that reached every program on the card: reboot, or take another machine",
    109: "switching between programs took too long: often follows another Xid",
    119: "the card's system processor does not answer: reboot; if it returns, another machine",
    120: "the card's system processor failed: reboot; if it returns, another machine",
    140: "memory with an error that could not be corrected: take another machine",
    143: "the card could not start: power or hardware, take another machine",
}


def explain(log: str) -> list[str]:
    """Explain every Xid in a kernel log once, in order of appearance; empty if there is none."""
    found = dict.fromkeys(int(number) for number in XID.findall(log))
    unknown = "not in our table; NVIDIA's list of Xid errors may know it"
    return [f"Xid {number}: {MEANINGS.get(number, unknown)}" for number in found]
