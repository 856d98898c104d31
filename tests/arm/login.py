"""Signing in to the simulated cloud: client secret, managed identity, and tokens that expire."""

from __future__ import annotations

import secrets
import urllib.parse
from dataclasses import dataclass, field

from arm.replies import ArmError, Reply, Request

TENANT = "99999999-8888-7777-6666-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
AUDIENCE = "https://management.azure.com"
TOKEN_TTL_S = 3600


@dataclass
class Login:
    """The directory: one application, one secret, the tokens given out."""

    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    tokens: set[str] = field(default_factory=set)
    own_tokens: dict[str, str] = field(default_factory=dict)
    """Tokens of machines' own identities, with the principal of each."""
    forbidden: bool = False
    """Answer 403 to everything, as for an account without rights."""

    def token(self) -> str:
        """A new token for ARM."""
        made = f"sim-token-{secrets.token_urlsafe(24)}"
        self.tokens.add(made)
        return made

    def handle(self, base: str, request: Request) -> Reply:
        """The two pages of the directory that a client secret needs."""
        if request.path.endswith("/.well-known/openid-configuration"):
            home = f"{base}/{TENANT}"
            return Reply(
                body={
                    "issuer": f"{home}/v2.0",
                    "authorization_endpoint": f"{home}/oauth2/v2.0/authorize",
                    "token_endpoint": f"{home}/oauth2/v2.0/token",
                    "device_authorization_endpoint": f"{home}/oauth2/v2.0/devicecode",
                }
            )
        form = dict(urllib.parse.parse_qsl(str(request.body or "")))
        if form.get("client_secret") != self.client_secret or form.get("client_id") != CLIENT:
            return Reply(
                status=401,
                body={
                    "error": "invalid_client",
                    "error_description": "AADSTS7000215: Invalid client secret provided.",
                },
            )
        if form.get("scope", "").split(" ")[0] != f"{AUDIENCE}/.default":
            return Reply(status=400, body={"error": "invalid_scope"})
        return Reply(
            body={
                "token_type": "Bearer",
                "expires_in": TOKEN_TTL_S,
                "access_token": self.token(),
            }
        )

    def identity(self, request: Request, principal: str) -> Reply:
        """The managed identity's token page, as a machine of that principal sees it."""
        if request.header("metadata").lower() != "true":
            return Reply(status=400, body={"error": "invalid_request"})
        if request.query.get("resource", "").rstrip("/") != AUDIENCE:
            return Reply(status=400, body={"error": "invalid_resource"})
        if not principal:
            return Reply(
                status=400,
                body={"error": "invalid_request", "error_description": "Identity not found"},
            )
        made = self.token()
        self.own_tokens[made] = principal
        return Reply(
            body={
                "access_token": made,
                "expires_in": str(TOKEN_TTL_S),
                "expires_on": "9999999999",
                "resource": AUDIENCE,
                "token_type": "Bearer",
            }
        )

    def check(self, request: Request) -> None:
        """Refuse a request to ARM without a token of ours."""
        kind, _, token = request.header("authorization").partition(" ")
        if kind != "Bearer" or not token:
            raise ArmError(
                401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header."
            )
        if token not in self.tokens:
            raise ArmError(401, "ExpiredAuthenticationToken", "The access token has expired.")
        if self.forbidden:
            raise ArmError(
                403,
                "AuthorizationFailed",
                f"The client 'someone' does not have authorization to perform action over scope "
                f"'{request.path}' or the scope is invalid.",
            )
