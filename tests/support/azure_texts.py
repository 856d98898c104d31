"""Texts and codes as Azure words its refusals."""

from __future__ import annotations

from arm.market import QUOTA_URL


def quota_text(family: str, limit: int = 0) -> str:
    """ARM's words for a quota that is too small."""
    return (
        "Operation could not be completed as it results in exceeding approved "
        f"{family} quota. Additional details - Deployment Model: Resource Manager, Location: "
        f"eastus, Current Limit: {limit}, Current Usage: 0, Additional Required: 4, (Minimum) New "
        f"Limit Required: {limit + 4}. Submit a request for Quota increase at {QUOTA_URL} by "
        "specifying parameters listed in the 'Details' section for deployment to succeed."
    )


PRICE = (
    "Unable to perform operation 'Create' since the provided max price '0.05 USD' is lower than "
    "the current spot price '0.149 USD' for Azure Spot Virtual Machine size 'Standard_NC4as_T4_v3'."
)


RESERVED = (
    "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide "
    "another nic(s) or retry after 180 seconds. Reserved VM: /subscriptions/x"
)
