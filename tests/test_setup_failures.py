"""Every known ending of a step is explained in a sentence, and repeated only where that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from remote.setup.failures import FAILURE_PATTERNS, explain_failure, is_retryable

ENDS: dict[str, tuple[str, int, str, bool]] = {
    "apt: cut": (
        (
            "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the"
            " problem. "
        ),
        100,
        "cut in the middle",
        True,
    ),
    "apt: lock": (
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 9 (apt)\n"
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another"
            " process using it?"
        ),
        100,
        "still at work (lock held by process 9 (apt))",
        True,
    ),
    "apt: disk full": (
        "E: You don't have enough free space in /var/cache/apt/archives/.",
        100,
        "disk is full",
        False,
    ),
    "dpkg: disk full": (
        (
            "dpkg: error processing archive /x.deb (--unpack):\n cannot copy extracted data for"
            " './usr/lib/x' to '/usr/lib/x.dpkg-new': failed to write (No space left on device)\n"
            "E: Sub-process /usr/bin/dpkg returned an error code (1)"
        ),
        100,
        "disk is full",
        False,
    ),
    "apt: held": (
        "E: Held packages were changed and -y was used without --allow-change-held-packages.",
        100,
        "apt-mark unhold",
        False,
    ),
    "apt: held broken": (
        (
            "The following packages have unmet dependencies:\n"
            "E: Unable to correct problems, you have held broken packages."
        ),
        100,
        "apt-mark showhold",
        False,
    ),
    "apt: unmet": (
        (
            "E: Unmet dependencies. Try 'apt --fix-broken install' with no packages (or specify a"
            " solution)."
        ),
        100,
        "--fix-broken install",
        True,
    ),
    "apt: no key": (
        (
            "W: GPG error: http://a.example noble InRelease: The following signatures couldn't be"
            " verified because the public key is not available: NO_PUBKEY A4B469963BF863CC\n"
            "E: The repository 'http://a.example noble InRelease' is not signed."
        ),
        100,
        "not signed with a key that is known and valid",
        False,
    ),
    "apt: expired key": (
        (
            "E: The repository 'http://a.example noble InRelease' is not signed.\n"
            "W: An error occurred during the signature verification. EXPKEYSIG 1234 X"
        ),
        100,
        "renew its key",
        False,
    ),
    "apt: not yet valid": (
        (
            "E: Release file for http://a/InRelease is not valid yet (invalid for another 3h"
            " 2min 1s). Updates for this repository will not be applied."
        ),
        100,
        "its clock is wrong",
        True,
    ),
    "apt: no release file": (
        "E: The repository 'http://a.example lunar Release' does not have a Release file.",
        100,
        "does not serve its release",
        False,
    ),
    "apt: stale list": (
        (
            "E: Failed to fetch http://a.example/pool/x_1.deb  404  Not Found [IP: 1.2.3.4 80]\n"
            "E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?"
        ),
        100,
        "no longer where its list says",
        True,
    ),
    "apt: mirror in change": ("E: Failed to fetch x  Hash Sum mismatch", 100, "mirror", True),
    "apt: unknown package": (
        "E: Unable to locate package ubuntu-drivers-common",
        100,
        "do not offer a package",
        False,
    ),
    "apt: no names": (
        "E: Failed to fetch http://a.example/x.deb  Temporary failure resolving 'a.example'",
        100,
        "no way out to the Internet",
        True,
    ),
    "apt: unknown package, for want of a valid clock": (
        (
            "E: Release file for http://a/InRelease is not valid yet (invalid for another 3h)\n"
            "E: Unable to locate package python3.12-venv"
        ),
        100,
        "its clock is wrong",
        True,
    ),
    "apt: unknown package, for want of a network": (
        (
            "W: Failed to fetch http://a/InRelease  Temporary failure resolving 'a'\n"
            "E: Unable to locate package python3.12-venv"
        ),
        100,
        "no way out to the Internet",
        True,
    ),
    "dpkg: asks": (
        (
            "dpkg: error processing package x (--configure):\n"
            " end of file on stdin at conffile prompt\n"
            "E: Sub-process /usr/bin/dpkg returned an error code (1)"
        ),
        100,
        "configuration file",
        False,
    ),
    "dpkg: a script": (
        (
            "dpkg: error processing package nvidia-dkms-580 (--configure):\n installed x"
            " package post-installation script subprocess returned error exit status 10"
        ),
        100,
        "a package cannot be set up",
        True,
    ),
    "dpkg: the driver does not build": (
        (
            "Error! Bad return status for module build on kernel: 6.17.0-1001-azure (x86_64)\n"
            "dpkg: error processing package nvidia-dkms-580 (--configure):"
        ),
        100,
        "cannot be built for the kernel",
        False,
    ),
    "pip: hash": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
        1,
        "replaced or damaged on its way",
        True,
    ),
    "pip: nothing fits": (
        (
            "ERROR: Could not find a version that satisfies the requirement x==1 (from: 2)\n"
            "ERROR: No matching distribution found for x==1"
        ),
        1,
        "no wheel of that version for this Python",
        False,
    ),
    "pip: nothing fits, for want of a network": (
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(':"
            " Failed to establish a new connection: [Errno 101] Network is unreachable')\n"
            "ERROR: No matching distribution found for x==1"
        ),
        1,
        "no way out to the Internet",
        True,
    ),
    "pip: nothing fits, for want of trust": (
        (
            "Could not fetch URL https://a/x/: There was a problem confirming the ssl certificate:"
            " HTTPSConnectionPool: (Caused by SSLError(SSLCertVerificationError())) - skipping\n"
            "ERROR: No matching distribution found for x==1"
        ),
        1,
        "does not trust who answers",
        False,
    ),
    "pip: certificate": (
        (
            "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1,"
            " '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed one in"
            " certificate chain'))': /simple/x/"
        ),
        1,
        "does not trust who answers",
        False,
    ),
    "pip: stalled": (
        (
            "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='a'):"
            " Read timed out."
        ),
        2,
        "stopped in the middle",
        True,
    ),
    "pip: proxy": (
        (
            "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy"
            " Authentication Required'))"
        ),
        1,
        "the proxy",
        False,
    ),
    "pip: index says no": (
        "ERROR: 403 Client Error: Forbidden for url: https://a/simple/x/",
        1,
        "refuses it",
        False,
    ),
    "pip: the system's": ("error: externally-managed-environment", 1, "vm.ssh.python", False),
    "pip: disk full": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        1,
        "disk is full",
        False,
    ),
    "pip: quota": ("OSError: [Errno 122] Disk quota exceeded", 1, "disk is full", False),
    "pip: read-only": (
        "OSError: [Errno 30] Read-only file system: '/home/me/qft'",
        1,
        "read-only",
        False,
    ),
    "venv: none": (
        "The virtual environment was not created successfully because ensurepip is not\navailable.",
        1,
        "python3-venv",
        False,
    ),
    "venv: no module": ("/usr/bin/python3: No module named venv", 1, "python3-venv", False),
    "loader: old system": (
        ("ImportError: /lib/libc.so.6: version `GLIBC_2.28' not found (needed by x.so)"),
        1,
        "older than the wheels",
        False,
    ),
    "not executable": ("sh: 1: qft/venv/bin/python: Permission denied", 126, "may not run", False),
    "not found": ("sh: 1: python3.12: not found", 127, "is not there", False),
    "bad interpreter": (
        "sh: ./x: /no/python: bad interpreter: No such file or directory",
        126,
        "names an interpreter that is missing",
        False,
    ),
    "another processor": (
        "sh: 1: ./x: Exec format error",
        126,
        "for another processor",
        False,
    ),
    "illegal instruction": ("Illegal instruction (core dumped)", 132, "lacks instructions", False),
    "sudo": ("sudo: a password is required", 1, "without a password", False),
    "nothing known": ("it went wrong", 1, "", True),
    "nothing said": ("", 1, "", True),
}


@pytest.mark.parametrize("name", ENDS)
def test_ending_is_explained(name: str) -> None:
    """The log of this row gets this sentence, and is tried again or not."""
    log, code, argv, again = ENDS[name]

    assert argv in explain_failure(log, "", code)
    assert bool(explain_failure(log, "", code)) == bool(argv)
    assert is_retryable(log, code) is again


def test_every_ending_is_in_the_table() -> None:
    """No pattern is there that no row of this file reaches."""
    logs = [log for log, *_ in ENDS.values()]
    unseen = [
        one.pattern
        for one in FAILURE_PATTERNS
        if not any(one.matches(line) for log in logs for line in log.splitlines())
    ]

    assert set(unseen) == {
        "checksum of the vgpu driver",
        "memoryerror|cannot allocate memory",
        "driver on your system is too old|driver version is insufficient",
    }


def test_killed_for_memory() -> None:
    """Exit 137 is want of memory where the kernel says so, and unexplained where it does not."""
    kernel = "[9.1] Out of memory: Killed process 812 (python) total-vm:9000000kB"

    assert "for want of memory" in explain_failure("Killed", kernel, 137)
    assert explain_failure("Killed", "", 137) == ""
    assert "fallen off" in explain_failure(
        "", "NVRM: Xid (PCI:0001:00:00): 79, GPU has fallen", 137
    )


# ---- the real programs ----


def test_shell_and_codes_agree(tmp_path: Path) -> None:
    """A real shell ends so for what may not run and for what is not there; neither is repeated."""
    plain, odd, foreign = tmp_path / "plain", tmp_path / "odd", tmp_path / "foreign"
    plain.write_text("#!/bin/sh\n")
    odd.write_text("#!/no/such/interpreter\n")
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 60)
    for path in (odd, foreign):
        path.chmod(0o755)

    for command in (str(plain), str(odd), str(foreign), str(tmp_path / "none")):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

        assert done.returncode in {126, 127}
        assert explain_failure(done.stderr, "", done.returncode)
        assert not is_retryable(done.stderr, done.returncode)


def test_real_pip_without_a_fitting_wheel(tmp_path: Path) -> None:
    """The real pip's words for an index that lacks a wheel are understood, and end it at once."""
    argv = ["install", "--isolated", "--no-index", "--target", str(tmp_path), "no-such==1"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *argv], capture_output=True, text=True, check=False
    )

    assert "no wheel of that version" in explain_failure(done.stderr, "", done.returncode)
    assert not is_retryable(done.stderr, done.returncode)
