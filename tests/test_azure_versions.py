"""Every api-version stands in one table, and is the one that the SDK's own operation asks for."""

from __future__ import annotations

import ast
import importlib
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from arm.operations import VERSION, check_version, operations, type_of, versions_of
from arm.replies import ArmError, Request
from azure.core.pipeline.transport import HttpTransport

from infra.azure.api_versions import API_VERSIONS, api_version_of
from infra.azure.errors import AzureErrorInfo, translate
from infra.errors import NoCapacity

ROOT = Path(__file__).resolve().parent.parent
S = "/subscriptions/11111111-2222-3333-4444-555555555555"
VM = f"{S}/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"
REQUESTED: list[tuple[str, str, str, Callable[[Any], Any], str]] = [
    # type, package, client, one operation of it, the path that qft asks for
    (
        "Microsoft.Authorization/permissions",
        "authorization",
        "AuthorizationManagementClient",
        lambda c: list(c.permissions.list_for_resource_group("g")),
        f"{S}/providers/Microsoft.Authorization/permissions",
    ),
    (
        "Microsoft.Authorization/roleAssignments",
        "authorization",
        "AuthorizationManagementClient",
        lambda c: c.role_assignments.get(VM, "name"),
        f"{VM}/providers/Microsoft.Authorization/roleAssignments/name",
    ),
    (
        "Microsoft.Authorization/roleDefinitions",
        "authorization",
        "AuthorizationManagementClient",
        lambda c: c.role_definitions.get(S, "name"),
        f"{S}/providers/Microsoft.Authorization/roleDefinitions/name",
    ),
    (
        "Microsoft.Compute/locations/placementScores",
        "computerecommender",
        "RecommenderMgmtClient",
        lambda c: c.spot_placement_scores.post("eastus", {}),
        f"{S}/providers/Microsoft.Compute/locations/eastus/placementScores/spot/generate",
    ),
    (
        "Microsoft.Compute/virtualMachines",
        "compute",
        "ComputeManagementClient",
        lambda c: c.virtual_machines.begin_deallocate("g", "v"),
        f"{VM}/deallocate",
    ),
    (
        "Microsoft.DevTestLab/schedules",
        "devtestlabs",
        "DevTestLabsClient",
        lambda c: c.global_schedules.get("g", "shutdown-computevm-v"),
        f"{S}/resourceGroups/g/providers/Microsoft.DevTestLab/schedules/shutdown-computevm-v",
    ),
    (
        "Microsoft.Insights/eventtypes/values",
        "monitor",
        "MonitorManagementClient",
        lambda c: list(c.activity_logs.list(filter="x")),
        f"{S}/providers/Microsoft.Insights/eventtypes/management/values?$filter=x",
    ),
    (
        "Microsoft.ResourceGraph/resources",
        "resourcegraph",
        "ResourceGraphClient",
        lambda c: c.resources({"query": "x"}),
        "/providers/Microsoft.ResourceGraph/resources",
    ),
    (
        "Microsoft.Resources/subscriptions",
        "resource.subscriptions",
        "SubscriptionClient",
        lambda c: c.subscriptions.get(S.rpartition("/")[2]),
        S,
    ),
]


class _StopError(Exception):
    """Enough was seen."""


class Seeing(HttpTransport[Any, Any]):
    """A transport that keeps the request it was given, and sends none."""

    def __init__(self) -> None:
        self.url = ""

    def send(self, request: Any, **_: Any) -> Any:
        """Keep the address."""
        self.url = str(request.url)
        raise _StopError

    def open(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


def sent_by_sdk(package: str, name: str, ask: Callable[[Any], Any]) -> tuple[str, str]:
    """Path and api-version of the request that a client of the SDK makes for an operation."""
    seeing = Seeing()
    module = cast("Any", importlib.import_module(f"azure.mgmt.{package}"))
    options: dict[str, Any] = {"credential": None, "transport": seeing, "policies": []}
    options["credential"] = types.SimpleNamespace(get_token=lambda *_: None)
    if "SubscriptionClient" not in name and "ResourceGraph" not in name:
        options["subscription_id"] = S.rpartition("/")[2]
    client = getattr(module, name)(**options)
    with pytest.raises(_StopError):
        ask(client)
    found = urlsplit(seeing.url)
    return found.path, parse_qs(found.query)["api-version"][0]


@pytest.mark.parametrize(
    ("type_", "package", "client", "ask", "path"), REQUESTED, ids=[one[0] for one in REQUESTED]
)
def test_table_has_the_version_that_the_sdk_sends(
    type_: str, package: str, client: str, ask: Callable[[Any], Any], path: str
) -> None:
    """An entry of the table is what the SDK's own client asks for, as seen on its own wire."""
    sent_path, version = sent_by_sdk(package, client, ask)

    assert API_VERSIONS[type_] == version
    assert api_version_of(path) == version
    assert f"{type_of(sent_path)}/".startswith(f"{type_.lower()}/")


def test_every_entry_is_compared() -> None:
    """No entry of the table escapes the comparison above."""
    assert set(API_VERSIONS) == {type_ for type_, *_ in REQUESTED}


def test_type_without_entry_is_not_guessed() -> None:
    """A type that nobody looked up raises here, instead of asking with a neighbour's version."""
    disk = f"{S}/resourceGroups/g/providers/Microsoft.Compute/disks/d"

    with pytest.raises(ValueError, match="no api-version is known"):
        api_version_of(disk)


def dated(path: Path) -> Iterator[str]:
    """The texts of a Python file that hold something like an api-version."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in re.finditer(VERSION, node.value):
                before = node.value[: found.start()]
                if "/metadata/" not in before:  # the machine's own service, which is no ARM
                    yield f"{path.name}:{node.lineno}: {found[0]}"


def test_no_version_stands_outside_the_table() -> None:
    """No file of `infra/azure` but the table has an api-version of ARM."""
    others = {"api_versions.py", "prices.py"}
    files = [one for one in (ROOT / "infra/azure").glob("*.py") if one.name not in others]

    assert [found for one in files for found in dated(one)] == []
    assert len(list(dated(ROOT / "infra/azure/api_versions.py"))) == len(API_VERSIONS)


def test_operations_are_read_as_the_sdk_sends_them() -> None:
    """What the simulated cloud admits was read rightly: the SDK's clients send the same."""
    disks = lambda c: c.disks.get("g", "d")  # noqa: E731  (one expression)
    cards = lambda c: c.network_interfaces.get("g", "n")  # noqa: E731  (one expression)
    for package, client, ask in (
        ("compute", "ComputeManagementClient", disks),
        ("network", "NetworkManagementClient", cards),
    ):
        path, version = sent_by_sdk(package, client, ask)
        assert versions_of(Request(method="GET", path=path, query={})) == [version]
    assert len(operations("microsoft.compute")) > 200
    assert len(operations("microsoft.network")) > 600


@pytest.mark.parametrize(
    ("path", "version", "code"),
    [
        (f"{S}/resourceGroups/g/providers/Microsoft.Compute/disks/d", "2024-07-01", "NoReg"),
        (f"{VM}/deallocate", "2026-03-02", "NoReg"),
        (f"{S}/resourcegroups/g", "2026-04-01", "InvalidApiVersionParameter"),
        (f"{S}/resourceGroups/g/providers/Microsoft.Compute/dicks/d", "2026-03-02", "InvalidRes"),
        (f"{S}/resourcegroups/g", "", "MissingApiVersionParameter"),
    ],
)
def test_wrong_version_is_refused_by_the_simulated_cloud(
    path: str, version: str, code: str
) -> None:
    """A version that a type does not have is refused, though its neighbours have it."""
    query = {"api-version": version} if version else {}

    with pytest.raises(ArmError) as caught:
        check_version(Request(method="GET", path=path, query=query), "eastus")

    assert caught.value.status == 400
    assert caught.value.code.startswith(code)


WRONG_VERSION = (
    "No registered resource provider found for location 'eastus' and API version '2024-07-01' for "
    "type 'disks'. The supported api-versions are '2023-10-02, 2026-03-02'. The supported "
    "locations are 'eastus, westus2'."
)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NoRegisteredProviderFound", WRONG_VERSION),
        ("InvalidApiVersionParameter", "The api-version '2099-01-01' is invalid."),
        ("InvalidResourceType", "The resource type 'x' could not be found in the namespace 'y'."),
        ("MissingApiVersionParameter", "The api-version query parameter is required."),
    ],
)
def test_wrong_version_is_no_lack_of_capacity(code: str, message: str) -> None:
    """What Azure says of an api-version says nothing about free machines."""
    error = translate(AzureErrorInfo(code=code, message=message, status=400), doing="look")

    assert not isinstance(error, NoCapacity)
    assert "api-version" in f"{error} {error.hint}"


def test_place_that_lacks_the_type_is_still_a_closed_place() -> None:
    """The same code for a region that does not have the type is about that region."""
    expected = WRONG_VERSION.replace("'2024-07-01'", "'2026-03-02'").replace(
        "'eastus'", "'nowhere'"
    )

    assert isinstance(
        translate(
            AzureErrorInfo(code="NoRegisteredProviderFound", message=expected, status=400),
            doing="x",
        ),
        NoCapacity,
    )
