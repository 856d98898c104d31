"""Lists the api-version of each ARM resource type that is requested without a client of the SDK.

Api-versions belong to a resource type, not to its namespace: a version that exists for virtual
machines need not exist for disks. What the SDK's own clients ask for needs no entry, they know
their versions. `tests/test_azure_versions.py` compares every entry with the operation of the
management package named beside it, and finds no other api-version of ARM in this folder.

Not here, because they are no api-versions of ARM: those of the machine's own metadata service
(`deallocate_self.py`, `cloudinit.py`), which live as long as the image, and that of the retail
prices (`prices.py`), a public page of its own.
"""

from __future__ import annotations

from urllib.parse import urlsplit

API_VERSIONS = {
    "Microsoft.Authorization/permissions": "2022-04-01",  # azure-mgmt-authorization
    "Microsoft.Authorization/roleAssignments": "2022-04-01",  # azure-mgmt-authorization
    "Microsoft.Authorization/roleDefinitions": "2022-04-01",  # azure-mgmt-authorization
    "Microsoft.Compute/locations/placementScores": "2025-06-05",  # azure-mgmt-computerecommender
    "Microsoft.Compute/virtualMachines": "2026-04-01",  # azure-mgmt-compute
    "Microsoft.DevTestLab/schedules": "2018-09-15",  # azure-mgmt-devtestlabs
    "Microsoft.Insights/eventtypes/values": "2015-04-01",  # azure-mgmt-monitor
    "Microsoft.ResourceGraph/resources": "2021-03-01",  # azure-mgmt-resourcegraph
    "Microsoft.Resources/subscriptions": "2022-12-01",  # azure-mgmt-resource-subscriptions
}
_BY_TYPE = {type_.lower(): version for type_, version in API_VERSIONS.items()}


def api_version_of(path: str) -> str:
    """Find the api-version with which a path of ARM is requested.

    Raises `ValueError` for a type that has no entry: better here than as a refusal of Azure's.
    """
    type_ = type_of(path).lower()
    while type_:
        if type_ in _BY_TYPE:
            return _BY_TYPE[type_]
        type_ = type_.rpartition("/")[0]  # the last word may be an action, such as `deallocate`
    raise ValueError(f"no api-version is known for `{path}`")


def type_of(path: str) -> str:
    """Find the resource type of a path of ARM, such as `Microsoft.Compute/disks`.

    The last `/providers/` counts: a role assignment hangs on the machine that it speaks of.
    """
    plain = urlsplit(path).path.strip("/")
    _, found, rest = f"/{plain}".rpartition("/providers/")
    if not found:
        return "Microsoft.Resources/subscriptions"
    namespace, *segments = rest.split("/")
    return "/".join([namespace, *segments[::2]])
