"""What Azure tells in several pages, or only in part, is read whole or not believed."""

from __future__ import annotations

import hashlib
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.disruptions import Disruptions
from arm.harness import T4, azure, spec
from arm.replies import Reply, Request
from cryptography import x509

from infra.azure.permissions import allowed, granted_permissions
from infra.errors import Transient
from infra.offer import Want
from infra.provider import PowerState, StopReason
from infra.renting.http import fetch

EVICTED: dict[str, object] = {
    "eventTimestamp": "2026-09-21T14:20:00Z",
    "operationName": {"value": "Microsoft.Compute/virtualMachines/evictSpotVM/action"},
    "status": {"value": "Succeeded"},
}


@dataclass
class Paged(Disruptions):
    """Answers one list in two pages, of which the first may be empty."""

    path: str = ""
    first: tuple[dict[str, object], ...] = ()
    second: tuple[dict[str, object], ...] = ()
    elsewhere: str = ""
    """Another host to name as that of the second page."""

    def take(self, request: Request) -> Disruption | None:
        """The page that is asked for."""
        if not request.path.lower().endswith(self.path):
            return super().take(request)
        host = self.elsewhere or f"https://{request.header('host')}"
        connection = f"{host}{request.path}?api-version={request.version}&$skiptoken=2"
        last = "$skiptoken" in request.query
        value = list(self.second if last else self.first)
        body = {"value": value, "nextLink": "" if last else connection}
        return Disruption(kind=DisruptionKind.ANSWER, reply=Reply(body=body))


def test_eviction_on_the_second_page_of_the_log_is_found(tmp_path: Path) -> None:
    """The activity log may be cut anywhere, also before anything at all."""
    log = Paged(path="/eventtypes/management/values", second=(EVICTED,))
    with azure(tmp_path, disruptions=log) as harness:
        vm = harness.provider().create(spec())
        harness.advance(300)
        harness.cloud.evict(harness.cloud.machines()[0], notice_s=0)
        harness.advance(1)

        seen = harness.provider().observe(vm)

    assert (seen.power, seen.stop_reason) == (PowerState.DEALLOCATED, StopReason.EVICTED)
    assert seen.certain


def test_permissions_are_read_from_every_page(tmp_path: Path) -> None:
    """A role on the second page counts."""
    role: dict[str, object] = {"actions": ["*"], "notActions": []}
    with azure(tmp_path, disruptions=Paged(path="/permissions", second=(role,))) as harness:
        assert allowed(granted_permissions(harness.provider().context), "Microsoft.Compute/x/write")


def test_page_on_another_host_is_not_shown_the_token(tmp_path: Path) -> None:
    """A reply cannot send us, and what we sign in with, to somebody else."""
    lured = Paged(path="/permissions", elsewhere="https://127.0.0.1:1")
    with azure(tmp_path, disruptions=lured) as harness:
        assert granted_permissions(harness.provider().context) == []


def test_eviction_rates_are_read_from_every_page(tmp_path: Path) -> None:
    """Resource Graph goes on with a token in the body, and is asked for rows, not for a table."""
    with azure(tmp_path) as harness:
        row = {"skuName": T4, "location": "eastus", "spotEvictionRate": "5-10"}
        for body in ({"data": [], "$skipToken": "more"}, {"data": [row]}):
            disruption = Disruption(
                kind=DisruptionKind.ANSWER, path="resourcegraph", reply=Reply(body=body)
            )
            harness.cloud.disruptions.add(disruption)

        offers = harness.provider().offers(Want(gpu="T4", regions=["eastus"]))

        requests = [r.body["options"] for r in harness.cloud.requests if "ResourceGraph" in r.path]
    assert {one.eviction_band for one in offers if one.size == T4} == {"5-10"}
    rows = {"resultFormat": "objectArray"}
    assert requests == [rows, rows | {"$skipToken": "more"}]


@contextmanager
def answering(raw: bytes) -> Iterator[str]:
    """A page on this computer that answers with these very bytes."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                continue
            self.wfile.write(raw)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"nonsense\r\n\r\n", b""]
)
def test_cut_answer_of_a_page_is_a_hiccup(raw: bytes) -> None:
    """A price list or address page whose connection breaks halfway stops nothing."""
    with answering(raw) as url, pytest.raises(Transient, match="did not answer"):
        fetch(url)


def test_certificates_may_lie_in_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the SDKs trust the price list and the address page are trusted with, too."""
    with azure(tmp_path / "state") as harness:
        bundle = tmp_path / "certificates"
        bundle.mkdir()
        certificate = harness.cloud.server.ca_file.read_bytes()
        (bundle / f"{hash_of(certificate):08x}.0").write_bytes(certificate)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))

        offers = harness.provider().offers(Want(gpu="T4", regions=["eastus"]))
        address = harness.provider().context.caller()

        assert {one.price_source for one in offers} == {"retail prices api"}
        assert offers[0].quota_left is not None  # which the SDK has read
        assert address == harness.cloud.caller


def hash_of(certificate: bytes) -> int:
    """The number under which OpenSSL looks for a certificate: a hash of its folded subject."""
    subject = x509.load_pem_x509_certificate(certificate).subject
    utf8 = x509.name._ASN1Type.UTF8String
    parts = [x509.NameAttribute(one.oid, str(one.value).lower(), utf8) for one in subject]
    folded = x509.Name(parts).public_bytes()[2:]  # without the head of the sequence
    return int.from_bytes(hashlib.sha1(folded, usedforsecurity=False).digest()[:4], "little")
