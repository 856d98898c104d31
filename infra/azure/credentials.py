"""Signing in, and again when Azure refuses a token that still looked good.

The SDK asks for a new token only when the old one is about to expire by its own date, and most ways
to sign in hand out a token that they keep until then. One that was revoked, or that a directory
expired early, would therefore end a run of many hours although a new one is there for the asking.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Self

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.identity import DefaultAzureCredential
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

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
        """A token for `scopes`; raises what the credential raises."""
        token: AccessTokenInfo = self._credential.get_token_info(*scopes, options=options)
        self._given = token.token
        return token

    def renew(self, refused: str) -> bool:
        """Forget what a refused token came from; False if a later one has been given out since.

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
    """The usual ways to sign in: environment, managed identity, `az login` and the rest.

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
