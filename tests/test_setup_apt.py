"""The real apt and dpkg, over a root of their own, get out of what a cut or an old list left."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.setup.failures import explain_failure, is_retryable


@pytest.fixture
def apt(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The real apt and dpkg over a root, a database and an archive of their own; nobody's else.

    The archive, served on loopback, has `probe`, which needs `grounds`.
    """
    assert shutil.which("apt-get"), "Debian's apt is needed"
    root, state, archive = tmp_path / "root", tmp_path / "state", tmp_path / "archive"
    for folder in (
        *(root / "var/lib/dpkg/updates", root / "var/lib/dpkg/info", archive),
        *(state / "lists/partial", tmp_path / "cache/archives/partial", tmp_path / "etc"),
    ):
        folder.mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    deb(archive, "grounds", "")
    deb(archive, "probe", "Depends: grounds\n")
    index(archive)
    handler = functools.partial(Quiet, directory=str(archive))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = f"deb [trusted=yes] http://127.0.0.1:{server.server_address[1]}/ ./\n"
    (tmp_path / "etc/sources.list").write_text(source)
    admin = root / "var/lib/dpkg"
    own = tmp_path / "bin" / "dpkg"  # which leaves the log of this computer alone
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec {shutil.which("dpkg")} --log={tmp_path}/log "$@"\n')
    own.chmod(0o755)
    (tmp_path / "apt.conf").write_text(
        f'Dir::State "{state}"; Dir::State::lists "{state}/lists"; Dir::Log "{tmp_path}";\n'
        f'Dir::Cache "{tmp_path}/cache"; Dir::State::status "{admin}/status";\n'
        f'Dir::Etc "{tmp_path}/etc"; Dir::Etc::sourcelist "{tmp_path}/etc/sources.list";\n'
        'Acquire::Languages "none"; Acquire::http::Proxy "false"; Acquire::Retries "0";\n'
        f'APT::Architecture "amd64"; APT::Sandbox::User ""; Dir::Bin::dpkg "{own}";\n'
        f'DPkg::Options {{ "--root={root}"; "--force-not-root"; "--force-script-chrootless"; }};\n'
    )
    yield {
        **os.environ,
        "PATH": f"{own.parent}:{os.environ['PATH']}",
        "APT_CONFIG": str(tmp_path / "apt.conf"),
        "DPKG_ROOT": str(root),
        "DPKG_ADMINDIR": str(admin),
        "DPKG_FORCE": "not-root",
    }
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def deb(archive: Path, name: str, more: str, version: str = "1") -> None:
    """Build a package of one file."""
    tree = archive / "build"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / f"{name}.txt").write_text(version)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\n"
        f"{more}Description: a probe\n"
    )
    target = archive / f"{name}_{version}.deb"
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)]
    subprocess.run(argv, check=True, capture_output=True)
    shutil.rmtree(tree)


def index(archive: Path) -> None:
    """Write the list of what is there."""
    output = []
    for path in sorted(archive.glob("*.deb")):
        fields = subprocess.run(
            ["dpkg-deb", "-f", str(path)], check=True, capture_output=True, text=True
        ).stdout
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        output.append(f"{fields}Filename: ./{path.name}\nSize: {size}\nSHA256: {digest}\n")
    (archive / "Packages").write_text("\n".join(output))


def install(apt: dict[str, str], *names: str, update: bool = True) -> tuple[int, str]:
    """Install by the functions that steps use; exit code and all that was said."""
    functions = (Path(__file__).parents[1] / "remote" / "setup" / "apt.sh").read_text()
    begin = "qft_update && " if update else ""
    command = f"{functions}\n{begin}qft_install {' '.join(names)}"
    done = subprocess.run(
        ["sh", "-c", command],
        env=apt,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def there(apt: dict[str, str]) -> set[str]:
    """The files of packages that are installed."""
    return {path.name for path in Path(apt["DPKG_ROOT"]).glob("*.txt")}


def test_real_apt_after_a_cut(apt: dict[str, str]) -> None:
    """With a note that a cut left, the real apt refuses; dpkg finishes, and it installs."""
    note = Path(apt["DPKG_ADMINDIR"]) / "updates" / "0001"
    note.touch()
    argv, environ = ["apt-get", "-y", "install", "probe"], {**apt, "LC_ALL": "C"}
    refused = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)

    code, output = install(apt, "probe")

    assert refused.returncode == 100
    assert "cut in the middle" in explain_failure(refused.stderr, "", 100)
    assert (code, there(apt)) == (0, {"grounds.txt", "probe.txt"}), output
    assert not note.exists()


def test_real_apt_with_a_package_half_configured(apt: dict[str, str]) -> None:
    """A package that was unpacked without what it needs is mended on the way."""
    archive = Path(apt["APT_CONFIG"]).parent / "archive"
    argv = ["dpkg", "--force-depends", "--unpack", str(archive / "probe_1.deb")]
    subprocess.run(argv, env=apt, check=True, capture_output=True)
    deb(archive, "other", "")
    index(archive)

    code, output = install(apt, "other")

    assert (code, there(apt)) == (0, {"grounds.txt", "probe.txt", "other.txt"}), output


def test_real_apt_with_a_list_that_is_old(apt: dict[str, str]) -> None:
    """What the archive has replaced since is found after the lists were fetched once more."""
    archive = Path(apt["APT_CONFIG"]).parent / "archive"
    assert install(apt, "grounds")[0] == 0
    (archive / "probe_1.deb").unlink()
    deb(archive, "probe", "Depends: grounds\n", version="2")
    index(archive)
    later_s = (
        time.time() + 60
    )  # HTTP's dates are whole seconds: "not modified", said in the same one
    os.utime(archive / "Packages", (later_s, later_s))

    code, output = install(apt, "probe", update=False)

    assert "404 " in output
    assert code == 0, output
    assert (Path(apt["DPKG_ROOT"]) / "probe.txt").read_text() == "2"


def test_real_apt_without_the_package(apt: dict[str, str]) -> None:
    """What no repository has is asked for again after an update, and then explained."""
    code, output = install(apt, "no-such-thing")

    assert code == 100
    assert "do not offer a package" in explain_failure(output, "", code)
    assert not is_retryable(output, code)
