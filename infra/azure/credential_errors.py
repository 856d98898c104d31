"""What a failed sign-in becomes: a command that helps, or patience with a network."""

from __future__ import annotations

import re

from infra.provider import ProviderError, SignedOut, Transient


def no_credentials(message: str) -> ProviderError:
    """Of a chain that tried ten ways to sign in, keep the lines that tell a human something."""
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
