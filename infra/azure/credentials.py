"""Gets tokens, and a new one when Azure refuses a token that still looked good.

The SDK asks for a new token only when the old one is about to expire by its own date, and most ways
to sign in hand out a token that they keep until then. One that was revoked, or that a directory
expired early, would therefore end a run of many hours although a new one is there for the asking.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Any, Self

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.identity import DefaultAzureCredential
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

from infra.errors import ProviderError, SignedOut, Transient

AZ_TIMEOUT_S = 30
"""How long `az` may take to hand out a token: busy computers and slow networks need their time."""
TRIES_MAX = 3
"""Repetitions of a refused request: other threads may be changing tokens, too."""


class RenewableCredential:
    """A credential that can be changed for a new one of its kind; may be shared by threads."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """Sign in with what `make` returns; raises what it raises."""
        self._make = make
        self._lock = threading.Lock()
        self._credential = make()
        self._before: Any = None
        self._given = ""

    def get_token_info(
        self, *scopes: str, options: TokenRequestOptions | None = None
    ) -> AccessTokenInfo:
        """Get a token for `scopes`; raises what the credential raises."""
        token: AccessTokenInfo = self._credential.get_token_info(*scopes, options=options)
        self._given = token.token
        return token

    def renew(self, refused: str) -> bool:
        """Replace the credential of a refused token; False if a later one was given out since.

        The credential before stays open for a while: another thread may be asking it.
        """
        with self._lock:
            if refused != self._given:
                return False
            self._given = ""
            _close(self._before)
            self._before, self._credential = self._credential, self._make()
            return True

    def close(self) -> None:
        """Let go of open connections."""
        _close(self._before)
        _close(self._credential)

    def __enter__(self) -> Self:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class RenewingPolicy(ARMChallengeAuthenticationPolicy):
    """Puts a token on every request, and repeats a refused one with a new token.

    A request that was not believed has changed nothing, so any may be repeated.
    """

    def __init__(self, credential: RenewableCredential, scope: str) -> None:
        super().__init__(credential, scope)
        self._renewable = credential

    def send(self, request: Any) -> Any:
        """Send the request; 401 is an answer only to a token for which Azure was asked anew.

        Each client of the SDK keeps a token of its own: the one that another has got meanwhile is
        tried first, and may be as old.
        """
        answer = super().send(request)
        for _ in range(TRIES_MAX):
            if answer.http_response.status_code != 401:
                break
            answer.http_response.read()  # gives the connection back; operations are read late
            refused = request.http_request.headers["Authorization"].partition(" ")[2]
            renewed = self._renewable.renew(refused)
            answer = super().send(request)
            if renewed:
                break
        return answer


def chain() -> DefaultAzureCredential:
    """Make the usual credential chain: environment, managed identity, `az login` and the rest.

    `AZURE_TOKEN_CREDENTIALS` narrows them. A private authority (`AZURE_AUTHORITY_HOST`) is not
    known to the public directory, so it is taken at its word.
    """
    private = "AZURE_AUTHORITY_HOST" in os.environ
    return DefaultAzureCredential(
        exclude_interactive_browser_credential=True,
        process_timeout=AZ_TIMEOUT_S,
        **({"disable_instance_discovery": True} if private else {}),
    )


def _close(credential: Any) -> None:
    if isinstance(credential, DefaultAzureCredential):
        credential.close()


def no_credentials(message: str) -> ProviderError:
    """Translate a failed credential chain, keeping the lines that help a person."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    useful = [line for line in lines if not _DULL.search(line)]
    tried = [line for line in useful if "authentication unavailable" not in line]
    summary = "; ".join((tried or useful)[:3]) or "no way to sign in was found"
    if _BROKEN_NETWORK.search(summary) and "AADSTS" not in summary:
        return Transient(
            f"cannot sign in to Azure just now: {summary}",
            hint="the network seems to be away; the same call is safe to repeat",
        )
    if (
        "Failed to invoke the Azure CLI" in summary
    ):  # so azure-identity calls one that takes too long
        return Transient(
            f"cannot sign in to Azure just now: {summary}",
            hint="`az account get-access-token` should answer within seconds; see what it says",
        )
    login = next((line for line in lines if line.startswith("az login")), "")
    return SignedOut(
        f"cannot sign in to Azure: {summary}",
        hint=f"`{login}`"
        if login
        else "`az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
    )


_DULL = re.compile(
    r"troubleshoot|Attempted credentials|Visit https|To mitigate|not installed on path|"
    r"not found on path|SharedTokenCache|VisualStudioCode|InteractiveBrowser|Broker|"
    r"WorkloadIdentity|DeveloperCli|PowerShell|no response from the IMDS|"
    r"DefaultAzureCredential failed|^Trace ID|^Run the command below|^Interactive auth|^az log",
    re.IGNORECASE,
)
_BROKEN_NETWORK = re.compile(
    r"Connection aborted|RemoteDisconnected|Connection refused|Connection reset|timed out|"
    r"Max retries exceeded|Name or service not known|getaddrinfo|NameResolution|"
    r"Temporary failure|unreachable",
    re.IGNORECASE,
)
