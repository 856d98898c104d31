"""Every usual way to sign in works through the unmodified identity library, and so does none."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from arm import Cloud
from arm.disruptions import Disruption, DisruptionKind
from arm.harness import spec
from arm.replies import ArmError

from infra.azure import AzureProvider, AzureSettings
from infra.azure.settings import PUBLIC_ARM
from infra.errors import NotAllowed, SignedOut

PAGE = (Path(__file__).parents[1] / "docs" / "azure.md").read_text()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A cloud whose environment is this process's, without any credential yet."""
    with Cloud() as cloud:
        for name in [*os.environ]:
            if name.startswith(("AZURE_", "QFT_", "IDENTITY_", "MSI_")):
                monkeypatch.delenv(name)
        for name, value in cloud.environment().items():
            if not name.startswith("AZURE_CLIENT") and name != "AZURE_TENANT_ID":
                monkeypatch.setenv(name, value)
        yield cloud


def sign_in(cloud: Cloud, directory: Path) -> list[object]:
    """Ask for something that needs an account."""
    settings = AzureSettings.from_environment(os.environ)
    provider = AzureProvider(settings, directory, clock=cloud.clock.now, sleep=cloud.clock.sleep)
    try:
        return list(provider.list_all())
    finally:
        provider.close()


def test_client_secret(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service principal signs in at the directory that the environment names."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)

    assert sign_in(cloud, tmp_path) == []
    assert any(r.path.endswith("/oauth2/v2.0/token") for r in cloud.requests)


def test_wrong_client_secret(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret is told as what it is, with the directory's own code, and not repeated."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "hunter2hunter2")

    with pytest.raises(NotAllowed, match="AADSTS7000215") as caught:
        sign_in(cloud, tmp_path)

    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_misspelt_way_to_sign_in(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that names no way to sign in is told, with the ways that there are."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureClientCredential")

    with pytest.raises(NotAllowed, match=r"AZURE_TOKEN_CREDENTIALS.*azureclicredential") as caught:
        sign_in(cloud, tmp_path)

    assert "unset it" in caught.value.hint


def test_az_login(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has signed in with `az` needs nothing else."""
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    token = cloud.login.token()
    az.write_text(
        "#!/bin/sh\n"
        f'echo \'{{"accessToken": "{token}", "expires_on": 9999999999,'
        ' "expiresOn": "2099-01-01 00:00:00.000000", "subscription": "s", "tenant": "t"}\'\n'
    )
    az.chmod(az.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{az.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")

    assert sign_in(cloud, tmp_path) == []


def test_expired_az_login_is_reported_with_the_command_that_renews_it(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `az` asks for is passed on as it stands, without the ways to sign in of others."""
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    az.write_text(
        "#!/bin/sh\n"
        "echo 'ERROR: AADSTS70043: The refresh token has expired.' >&2\n"
        "echo 'Trace ID: 1 Correlation ID: 2 Timestamp: 2026-09-21 01:00:00Z' >&2\n"
        "echo 'Run the command below to authenticate interactively:' >&2\n"
        "echo 'az logout' >&2\n"
        'echo \'az login --tenant "t" --scope "s"\' >&2\n'
        "exit 1\n"
    )
    az.chmod(az.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{az.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "dev")

    with pytest.raises(SignedOut) as caught:
        sign_in(cloud, tmp_path)

    message = "AzureCliCredential: ERROR: AADSTS70043: The refresh token has expired."
    assert str(caught.value) == f"cannot sign in to Azure: {message}"
    assert caught.value.hint == '`az login --tenant "t" --scope "s"`'


def test_managed_identity(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of Azure's own, its identity is enough."""
    token = cloud.login.token()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = "/metadata/identity/oauth2/token" in self.path and self.headers["Metadata"]
            self.send_response(200 if good else 400)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            body = f'{{"access_token": "{token}", "expires_in": "3600", "expires_on": "9999999999",'
            self.wfile.write(f'{body} "resource": "x", "token_type": "Bearer"}}'.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", base)
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        found = sign_in(cloud, tmp_path)
        server.shutdown()

    assert found == []


def test_nobody_signed_in(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any credential there is one sentence and one command, not a page of attempts."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")

    with pytest.raises(NotAllowed) as caught:
        sign_in(cloud, tmp_path)

    assert len(str(caught.value)) < 200
    assert caught.value.hint.startswith("`az login`")


def test_no_subscription(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a subscription nothing is asked of anybody, and the command to choose one is told."""
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")

    with pytest.raises(NotAllowed, match="no Azure subscription") as caught:
        sign_in(cloud, tmp_path)

    assert "az account list" in caught.value.hint
    assert cloud.requests == []


def open_provider(cloud: Cloud, directory: Path, monkeypatch: pytest.MonkeyPatch) -> AzureProvider:
    """A provider that has signed in with a client secret and been answered."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    settings = dataclasses.replace(AzureSettings.from_environment(os.environ), polling_s=5.0)
    provider = AzureProvider(settings, directory, clock=cloud.clock.now, sleep=cloud.clock.sleep)
    provider.list_all()
    return provider


def test_revoked_token_is_changed_for_a_new_one(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was good by its date ends nothing, though the library would show it for ever.

    Reads, orders and operations alike: each is repeated, and each is carried out once.
    """
    provider = open_provider(cloud, tmp_path, monkeypatch)
    vm = provider.create(spec())
    orders: list[Callable[[], object]] = [
        provider.list_all,
        lambda: provider.deallocate(vm),
        lambda: provider.start(vm),
        lambda: provider.delete(vm.run_id),
    ]

    for order in orders:
        cloud.login.tokens.clear()
        order()
    provider.close()

    assert cloud.leftovers() == []
    refused = [r.path for r, status in cloud.server.recorded if status == 401]
    assert len(orders) <= len(refused) <= 2 * len(orders)  # one for each client of the SDK


def test_refused_sign_in_is_reported_after_one_more_try(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a new token is refused as well, it is a matter of signing in again."""
    provider = open_provider(cloud, tmp_path, monkeypatch)
    before = len(cloud.requests)
    old = ArmError(401, "ExpiredAuthenticationToken", "The access token has expired.").reply()
    cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, path="^/subscriptions/", times=9, reply=old)
    )

    with pytest.raises(NotAllowed, match="ExpiredAuthenticationToken") as caught:
        provider.list_all()
    provider.close()

    assert "az login" in caught.value.hint
    requests = [r.path for r in cloud.requests[before:] if r.path.startswith("/subscriptions/")]
    assert len(requests) == 2


def test_settings_default_to_the_public_cloud() -> None:
    """An empty environment is the ordinary case."""
    assert AzureSettings.from_environment({}) == AzureSettings()
    assert AzureSettings().arm_endpoint == PUBLIC_ARM


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("QFT_AZURE_POLLING_S", "0"),
        ("QFT_AZURE_POLLING_S", "inf"),
        ("QFT_AZURE_POLLING_S", "often"),
        ("QFT_AZURE_OFFERS_WAIT_S", "-1"),
        ("QFT_AZURE_SSH_PORT", "70000"),
        ("QFT_AZURE_SSH_PORT", "ssh"),
        ("QFT_ARM_ENDPOINT", "http://127.0.0.1:1"),
        ("QFT_ARM_ENDPOINT", "management.azure.com"),
        ("QFT_ARM_ENDPOINT", "https://"),
    ],
)
def test_nonsense_in_the_settings_is_refused(name: str, text: str) -> None:
    """What would be a storm of requests, or show a token to anybody, is refused by its name."""
    with pytest.raises(ValueError, match=f"{name} must be"):
        AzureSettings.from_environment({name: text})


def test_tokens_are_requested_for_the_cloud_in_use() -> None:
    """A sovereign cloud needs its own, a proxy of the public one does not, and both can be told."""
    audiences = {
        "https://management.usgovcloudapi.net/": "https://management.usgovcloudapi.net",
        "https://proxy.example": PUBLIC_ARM,
    }
    for endpoint, audience in audiences.items():
        chosen = {"QFT_ARM_ENDPOINT": endpoint}
        assert AzureSettings.from_environment(chosen).audience == audience
        chosen["QFT_ARM_AUDIENCE"] = "https://other.example/"
        assert AzureSettings.from_environment(chosen).audience == "https://other.example"


def test_page_names_all_settings() -> None:
    """docs/azure.md knows each variable that the program reads, and invents none."""
    source = (Path(__file__).parents[1] / "infra" / "azure" / "settings.py").read_text()
    read = set(re.findall(r'"((?:QFT|AZURE)_[A-Z_]+)"', source))
    shown = set(re.findall(r"QFT_[A-Z_]+", PAGE))

    assert shown == {name for name in read if name.startswith("QFT_")}
    assert "AZURE_SUBSCRIPTION_ID" in PAGE


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Importing the provider costs no SDK: `--help` and `plan` of other providers stay quick."""
    script = (
        "import sys, infra.azure; print([m for m in sys.modules if m.split('.')[0] == 'azure'])"
    )

    message = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout

    assert message.strip() == "[]"
