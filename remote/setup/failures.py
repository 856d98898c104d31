"""Explains a failed step, and whether it may be retried, from its log and exit code."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOCKED = re.compile(r"(?:held by process \d+ \([^)]*\)|locked by another process with pid \d+)")
NO_INTERNET = re.compile(
    r"connection timed out|connecttimeout|failed to establish a new connection|could not connect to"
    r"|couldn't connect to server|failed to connect to|could not resolve|network is unreachable"
    r"|temporary failure in name resolution|temporary failure resolving|name or service not known"
    r"|no route to host|unable to connect to",
    re.IGNORECASE,
)
NO_INTERNET_HINT = (
    "the machine has no way out to the Internet: its network card needs a public address or its"
    " subnet a NAT gateway, its names a server that resolves them, and no firewall or policy may"
    " close ports 80 and 443 outbound"
)
KILLED = 137
"""Exit code of what SIGKILL ended, as a shell tells it."""
KILLED_FOR_MEMORY = re.compile(r"out of memory|oom-kill|oom_reaper", re.IGNORECASE)
MEMORY_HINT = (
    "the kernel killed it for want of memory: end what else runs there (`free -h`), or choose a"
    " machine with more"
)


@dataclass(frozen=True, kw_only=True)
class FailurePattern:
    """One failure that is recognised by a line of the log."""

    pattern: str
    """A regular expression for the line, ignoring case."""
    means: str
    """What it means, and what helps."""
    retryable: bool = True
    """Whether the same step may succeed a moment later."""
    general: bool = False
    """Whether it only says that something failed, or what followed: see `last_specific_line`."""

    def matches(self, line: str) -> bool:
        """Whether a line has this pattern."""
        return re.search(self.pattern, line, re.IGNORECASE) is not None


FAILURE_PATTERNS = (
    FailurePattern(
        pattern=r"no space left on device|enough free space in|disk quota exceeded",
        means="its disk is full: free some space there (`df -h`), or raise `vm.disk_gb` and make a"
        " new machine",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"read-only file system",
        means="its disk is mounted read-only, as after a fault of the disk: `dmesg` there says why;"
        " choose another machine, or another home",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"dpkg was interrupted",
        means="an installation there was cut in the middle and cannot be finished:"
        " `sudo dpkg --configure -a` on the machine (`qft ssh`) says why",
    ),
    FailurePattern(
        pattern=r"held packages were changed|held broken packages",
        means="packages there are held at versions that do not go with what is needed:"
        " `apt-mark showhold` lists them, `sudo apt-mark unhold NAME` frees one",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"unmet dependencies|--fix-broken install|unable to correct problems",
        means="packages there lack others that its repositories do not offer:"
        " `sudo apt-get --fix-broken install` on the machine (`qft ssh`) tells which",
    ),
    FailurePattern(
        pattern=r"release file for .* (?:is not valid yet|is expired|expired)|not live until",
        means="its clock is wrong, or its mirror has not been renewed for weeks: `timedatectl` on"
        " the machine shows the time",
    ),
    FailurePattern(
        pattern=r"is not signed|no_pubkey|expkeysig|keyexpired|revkeysig|badsig|not bound:"
        r"|(?:signatures|key\(s\)).{0,40}(?:verified|invalid|ignored)|signature by key .* rejected",
        means="a repository of packages there is not signed with a key that is known and valid:"
        " renew its key, or remove its file below /etc/apt/sources.list.d",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"does not have a release file",
        means="a repository of packages there does not serve its release of the system: remove its"
        " file below /etc/apt/sources.list.d",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"hash sum mismatch|file has unexpected size|mirror sync in progress",
        means="its mirror of packages is being changed just now: repeat the command in a while",
    ),
    FailurePattern(
        pattern=r"returned error: 404|failed to fetch .*\s404\s",
        means="a file is no longer where its list says, also after the lists were fetched anew:"
        " repeat the command later, or choose another mirror or image",
    ),
    FailurePattern(
        pattern=r"unable to locate package|has no installation candidate|couldn't find any package",
        means="its repositories do not offer a package that is needed: use a current Ubuntu, with"
        " its repositories `main`, `universe` and `restricted` switched on",
        retryable=False,
        general=True,
    ),
    FailurePattern(
        pattern=r"end of file on stdin at conffile prompt",
        means="a package asks what to do with a configuration file that was changed there: answer"
        " it with `sudo dpkg --configure -a` on the machine (`qft ssh`)",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"do not match the hashes|hash mismatch|hashmismatch",
        means="a file is another one than the lock names, so it was replaced or damaged on its way"
        " and was not installed: repeat the command, or have the mirror of packages checked",
    ),
    FailurePattern(
        pattern=r"checksum of the vgpu driver",
        means="what arrived is not the driver that is trusted, and was not executed: see"
        " `vm.azure.grid_sha256` in docs/azure.md",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"certificate_verify_failed|certificate verify failed|sslerror|ssl certificate"
        r"|certificate is not trusted|self[- ]signed certificate",
        means="it does not trust who answers: its clock is wrong (`timedatectl`), or a proxy is in"
        " between, whose certificate pip needs as `cert` in pip.conf",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"proxyerror|cannot connect to proxy|407 proxy authentication|response 407",
        means="the proxy that is set there does not let it through: see `https_proxy` in its"
        " environment, and `proxy` in pip.conf",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"(?:error|status code)[: ]+40[13]|40[13] (?:client error|unauthorized|forbidden)",
        means="the index of packages that is set there refuses it: see `index-url` in pip.conf and"
        " the password with it",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"read timed out|readtimeout|incompleteread|connection broken|connection reset"
        r"|remote end closed",
        means="the download stopped in the middle: its network is slow or broken just now; repeat"
        " the command",
    ),
    FailurePattern(
        pattern=r"no matching distribution found|could not find a version that satisfies",
        means="the index that pip asks there has no wheel of that version for this Python and"
        " system: it must be a full mirror, and the system have glibc 2.28 or later",
        retryable=False,
        general=True,
    ),
    FailurePattern(
        pattern=r"externally-managed-environment|externally managed",
        means="that Python belongs to the system, which forbids pip to change it: leave"
        " `vm.ssh.python` empty, so that qft makes an environment of its own",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"ensurepip is not|no module named '?(?:ensurepip|venv|pip)\b",
        means="its Python cannot make environments: `sudo apt-get install python3-venv` there",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"memoryerror|cannot allocate memory",
        means="it has too little memory: end what else runs there (`free -h`), or choose a machine"
        " with more",
    ),
    FailurePattern(
        pattern=r"version `glibc\S* not found",
        means="its system is older than the wheels: they need glibc 2.28 or later",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"a password is required|a terminal is required to read the password",
        means="allow this user `sudo` without a password, or do this step yourself",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"driver on your system is too old|driver version is insufficient",
        means="the driver is older than the wheels need: choose another image or size",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"unable to build the nvidia kernel module|bad return status for module build"
        r"|unable to find the kernel source tree|error! build of nvidia",
        means="the driver cannot be built for the kernel of this image: choose another `vm.image`",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"exec format error|cannot execute binary file",
        means="a program there is for another processor: choose a machine with x86_64",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"bad interpreter",
        means="a program there names an interpreter that is missing or may not run: `qft ssh` and"
        " the line above say which",
        retryable=False,
    ),
    FailurePattern(
        pattern=r"sub-process \S*dpkg returned an error|error processing package|dpkg: error: ",
        means="a package cannot be set up, as the lines above tell: mend that with"
        " `sudo dpkg --configure -a` on the machine (`qft ssh`)",
        general=True,
    ),
)
"""What apt, dpkg, pip, curl, the shell and the loader print last, the more specific first."""
EXIT_CODE_MEANINGS = {
    126: "a program that is needed was found but may not run: it is not executable, its disk is"
    " mounted `noexec`, or it is for another processor",
    127: "a program that is needed is not there, or its interpreter is not",
    132: "its processor lacks instructions that the wheels need: choose another machine",
    135: "its disk or memory failed under a program: choose another machine",
}
"""Failures that only the exit code shows, as shells report it; a retry ends the same way."""

XID = re.compile(r"Xid\s*\([^)]*\)\s*:\s*(\d+)")
XID_MEANINGS = {
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
"""What the numbers mean that an NVIDIA driver leaves in the kernel's log as `Xid`."""


def explain_failure(log: str, kernel: str, code: int | None = None) -> str:
    """Return what a failed step means and what helps; empty if nothing fits.

    The driver's `Xid` errors come first, then the last line of the log that means something: a
    lock that was waited for is no reason once it was taken.
    """
    if errors := explain_xids(kernel):
        return "; ".join(errors)
    if code == KILLED and KILLED_FOR_MEMORY.search(kernel):
        return MEMORY_HINT
    line = last_specific_line(log)
    return explain_line(line) or EXIT_CODE_MEANINGS.get(code or 0, "")


def last_specific_line(log: str) -> str:
    """Return the last line that says what went wrong; empty if none does.

    A general one gives way to an earlier specific one, but not to one about a lock.
    """
    general = ""
    for line in reversed(log.splitlines()):
        found = find_pattern(line)
        if LOCKED.search(line):
            return general or line
        if found and found.general:
            general = general or line
        elif found or NO_INTERNET.search(line):
            return line
    return general


def explain_line(line: str) -> str:
    """Return what one line of a log means; empty if no pattern matches."""
    if lock := LOCKED.search(line):
        return (
            f"another package tool is still at work (lock {lock[0]}): wait for it, or end it on"
            " the machine (`qft ssh`), then repeat the command"
        )
    if NO_INTERNET.search(line):
        return NO_INTERNET_HINT
    found = find_pattern(line)
    return found.means if found else ""


def find_pattern(line: str) -> FailurePattern | None:
    """Return the first pattern that matches a line."""
    return next((one for one in FAILURE_PATTERNS if one.matches(line)), None)


def is_retryable(log: str, code: int | None) -> bool:
    """Whether a step that failed so may succeed if it is run again; an unknown failure may."""
    if code in EXIT_CODE_MEANINGS:
        return False
    line = last_specific_line(log)
    found = find_pattern(line)
    if found is None or LOCKED.search(line) or NO_INTERNET.search(line):
        return True
    return found.retryable


def explain_xids(log: str) -> list[str]:
    """Return what each Xid in a kernel log means, once, in order of appearance."""
    found = dict.fromkeys(int(number) for number in XID.findall(log))
    unknown = "not in our table; NVIDIA's list of Xid errors may know it"
    return [f"Xid {number}: {XID_MEANINGS.get(number, unknown)}" for number in found]
