"""The Azure provider: rents spot GPU machines under a hard cap, found and removed by tag alone.

Only `sdk.py` imports the Azure SDKs, and it is itself imported when the first request is due.
"""

from infra.azure.provider import AzureProvider
from infra.azure.settings import AzureSettings

__all__ = ["AzureProvider", "AzureSettings"]
