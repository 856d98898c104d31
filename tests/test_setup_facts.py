"""What a machine says about itself is read line by line, and nonsense is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote.setup.facts import DetectedGpu, Facts, PythonInterpreter, parse_facts, version_of
from remote.setup.failures import XID_MEANINGS, explain_xids

A10 = DetectedGpu(name="NVIDIA A10-24Q", driver="570.211.01", memory_mb=24512, capability="8.6")


def test_parse_reads_a_whole_machine() -> None:
    """Facts are read line by line; what is malformed or unknown is left out."""
    text = """os=ubuntu 24.04
kernel=6.8.0
boot=b7
free_kb=1000
sudo=yes
python=python3.12 3.12 no
python=broken
python=python3 3.12 yes
pci=0x2236
gpu=NVIDIA A10-24Q, 570.211.01, 24512, 8.6
gpu=Failed to initialize NVML
smi_code=0
package=nvidia-driver-570
secure_boot=1
venv=venv-abc
cuda_seen=venv-abc b7 570.211.01
upgrader=apt-daily.timer
nonsense
key=with=equals"""
    facts = parse_facts(text.splitlines())

    assert (facts.gpus, facts.driver, facts.pci_gpus) == ((A10,), "570.211.01", 1)
    assert (facts.free_bytes, facts.sudo, facts.secure_boot) == (1_024_000, True, True)
    assert facts.python == PythonInterpreter(command="python3", version=(3, 12), venv=True)
    assert facts.cuda_seen == (("venv-abc", "b7 570.211.01"),)
    assert facts.upgraders == ("apt-daily.timer",)


@given(st.lists(st.text(max_size=40), max_size=20))
def test_parse_survives_anything(lines: list[str]) -> None:
    """A machine that says nonsense has no facts, and does not break set-up."""
    assert isinstance(parse_facts(lines), Facts)


def test_versions_compare_as_numbers() -> None:
    """580.9 is older than 580.65, and a lone number has a minor part."""
    assert version_of("580.9") < version_of("580.65.06")
    assert version_of("570") == (570, 0)


def test_xids_are_explained() -> None:
    """A kernel log is explained, each error once; an unknown one is named."""
    log = """[  5.1] NVRM: Xid (PCI:0001:00:00): 78, pid='<unknown>', name=<unknown>
[  6.0] NVRM: Xid (PCI:0001:00:00): 78, again
[  7.0] NVRM: Xid (PCI:0001:00:00): 999, new"""

    assert explain_xids(log) == [f"Xid 78: {XID_MEANINGS[78]}", explain_xids("Xid (x): 999")[0]]
    assert "570" in XID_MEANINGS[78]
    assert explain_xids("all is well") == []


def test_parse_reads_what_only_some_machines_report() -> None:
    """The C library, the pin of NVIDIA's repository, what dpkg left, and a checksum are read."""
    text = f"""libc=glibc 2.39
package=nvidia-driver-pinning-580.173.02
open_modules=yes
dpkg_broken=libc6 (cut)
grid_sha256={"a" * 64}
python=pypy3 3.11 yes pypy"""
    facts = parse_facts(text.splitlines())
    odd = parse_facts(["libc=", "grid_sha256=$(rm)", "python=a 1 b c d"])

    assert (facts.libc, facts.pinned) == (("glibc", "2.39"), "580.173.02")
    assert (facts.open_modules, facts.dpkg_broken) == (True, "libc6 (cut)")
    assert (facts.grid_sha256, facts.python) == ("a" * 64, None)
    assert (odd.libc, odd.grid_sha256, odd.pythons) == (None, "", ())
