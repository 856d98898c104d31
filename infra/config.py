"""Checks the tables `vm` and `budget` of `run.yaml` before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from infra.catalog.azure import AZURE
from infra.catalog.gpus import Driver, UnknownGpu, resolve_gpu
from infra.catalog.regions import RegionList
from infra.catalog.vendors import CATALOGS
from infra.image import ImageDriver, check_urn, generation_of, image_facts
from infra.names import cloud_name_error, host_error, key_path_error, program_error, user_error

PRICE_DECIMALS_MAX = 5
"""Azure's `billingProfile.maxPrice` admits five decimals."""
ANY = "any"
ProviderName = Literal["local", "azure", "aws", "ssh"]
CloudName = Literal["azure", "aws"]
"""The providers that rent, so that a run may take whichever is cheapest."""
CLOUDS: tuple[str, ...] = get_args(CloudName)


def _branch(value: object) -> str:
    return "kind several" if isinstance(value, list | tuple) else "kind one"


class VmTable(BaseModel):
    """Which machine to rent, where, and at what price at most."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    provider: Annotated[
        Annotated[ProviderName, Tag("kind one")]
        | Annotated[list[CloudName], Field(min_length=1), Tag("kind several")],
        Discriminator(_branch),
    ] = Field(
        default="local",
        description="`local` plays a spot cloud on this computer, `azure` and `aws` rent, `ssh` is"
        " yours. A list such as `[azure, aws]`, or `any`, takes the cheapest place of several.",
    )
    gpu: Annotated[
        Annotated[str, Tag("kind one")]
        | Annotated[list[str], Field(min_length=1), Tag("kind several")],
        Discriminator(_branch),
    ] = Field(
        default="T4",
        description="A GPU of the catalog, such as T4, A10, A100; a list of them, or `any`, lets a"
        " run move to another card.",
    )
    regions: list[str] = Field(
        default_factory=list, description="Regions in order of preference; several survive more."
    )
    max_price: float | None = Field(
        default=None, gt=0, le=100, description="USD per hour, hard: it goes to the cloud itself."
    )
    disk_gb: int = Field(default=128, ge=30, le=4095, description="Size of the machine's disk.")
    image: ImageTable | None = Field(
        default=None,
        description="Disk image on Azure: a URN `publisher:offer:sku:version`, or a table with"
        " `urn` and `driver`; without it qft takes the one that suits the GPU.",
    )
    rehearse_evictions: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        description="Steps at which the cloud is asked to rehearse an eviction of the machine.",
    )
    local: LocalTable = Field(default_factory=lambda: LocalTable())  # noqa: PLW0108  (defined below)
    ssh: SshTable | None = Field(default=None, description="Needed by `provider: ssh`.")
    azure: AzureTable = Field(default_factory=lambda: AzureTable())  # noqa: PLW0108  (defined below)
    aws: AwsTable = Field(default_factory=lambda: AwsTable())  # noqa: PLW0108  (defined below)

    @field_validator("provider", mode="before")
    @classmethod
    def _provider_of_one(cls, value: object) -> object:
        """Take `any` for every cloud, and a list of one for that one."""
        return _without_list([*CLOUDS] if value == ANY else value)

    @field_validator("gpu", mode="before")
    @classmethod
    def _gpu_of_one(cls, value: object) -> object:
        """Take `any` for no card in particular, and a list of one for that one."""
        return _without_list("" if value == ANY else value)

    @field_validator("provider")
    @classmethod
    def _check_provider(cls, value: str | list[str]) -> str | list[str]:
        return _each_once(value)

    @field_validator("gpu")
    @classmethod
    def _check_gpu(cls, value: str | list[str]) -> str | list[str]:
        try:
            for name in _listed(value):
                resolve_gpu(name)
        except UnknownGpu as error:
            raise ValueError(_followed(str(error), error.hint)) from error
        return _each_once(value)

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, value: list[str], info: ValidationInfo) -> list[str]:
        lists = _region_lists(_listed(info.data.get("provider")))
        codes = [_region_code(lists, name) for name in value]
        return [_require_valid(region, cloud_name_error) for region in codes]

    @field_validator("max_price")
    @classmethod
    def _check_max_price(cls, value: float | None) -> float | None:
        if value is not None and round(value, PRICE_DECIMALS_MAX) != value:
            raise ValueError("at most five decimals, as the cloud allows no more")
        return value

    @field_validator("image", mode="before")
    @classmethod
    def _urn_to_table(cls, value: object) -> object:
        if isinstance(value, str):
            return {"urn": value}
        if value is None or isinstance(value, (dict, ImageTable)):
            return value
        raise ValueError("write a URN, `publisher:offer:sku:version`, or a table with `urn`")

    @model_validator(mode="after")
    def _check_image(self) -> VmTable:
        if self.image is None:
            return self
        if self.provider == "ssh":
            raise ValueError(
                "`image` is for machines that are rented; yours has its system already"
            )
        if self.card:
            self.image.check_fits(self.card)
        return self

    @model_validator(mode="after")
    def _check_provider_table(self) -> VmTable:
        if self.provider == "ssh" and self.ssh is None:
            raise ValueError("`provider: ssh` needs a table `ssh`: host, user, key, host_key")
        tables = [getattr(self, name) for name in self.providers]
        if any(getattr(one, "needs_max_price", False) for one in tables) and self.max_price is None:
            named = self.provider if isinstance(self.provider, str) else ", ".join(self.providers)
            shown = named if isinstance(self.provider, str) else f"[{named}]"
            raise ValueError(f"`provider: {shown}` needs `max_price`, the hard cap in USD per hour")
        return self

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that may be used, in the order of run.yaml."""
        return tuple(_listed(self.provider))

    @property
    def cards(self) -> tuple[str, ...]:
        """The GPUs that may be used, as run.yaml spells them; empty for any."""
        return tuple(_listed(self.gpu))

    @property
    def card(self) -> str:
        """The one GPU that may be used; empty if there are several, or any will do."""
        return self.gpu if isinstance(self.gpu, str) else ""

    def at(self, provider: str) -> VmTable:
        """Return the table as it would be with that provider alone."""
        return self.model_copy(update={"provider": provider})


class ImageTable(BaseModel):
    """Which disk image a rented machine boots from, and the driver that it brings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urn: str = Field(
        description="`publisher:offer:sku:version` of Azure's marketplace; version may be `latest`."
    )
    driver: Literal["auto", "none", "preinstalled", "cuda", "grid"] = Field(
        default="auto",
        description="The NVIDIA driver that the image brings. `auto` looks, and installs what"
        " lacks; with `preinstalled`, `cuda` or `grid` nothing is installed over it.",
    )

    @field_validator("urn")
    @classmethod
    def _check_urn(cls, value: str) -> str:
        return check_urn(value)

    @property
    def driver_is_given(self) -> bool:
        """Whether the user says that the image brings its driver, so that none is installed."""
        return self.driver not in {"auto", "none"}

    def note(self, gpu: str) -> str:
        """What set-up will do about the driver, where the image is known not to bring the right."""
        driver = image_facts(self.urn).driver if self.driver == "auto" else ImageDriver(self.driver)
        grid = bool(gpu) and AZURE.matching(gpu)[0].driver is Driver.GRID
        if driver is ImageDriver.NONE:
            return "`vm.image` brings no driver: set-up installs one and reboots, some ten minutes"
        if driver is ImageDriver.CUDA and grid:
            return "`vm.image` brings the data-center driver: set-up replaces it by the vGPU driver"
        return ""

    def check_fits(self, gpu: str) -> None:
        """Raise `ValueError` if no machine with that GPU boots the image, or can use its driver."""
        matching_sizes = AZURE.matching(gpu)
        generation = generation_of(self.urn)
        if generation and not any(
            generation in one.hypervisor_generations for one in matching_sizes
        ):
            raise ValueError(
                f"`image` is for Gen{generation} machines, and those with {gpu} boot"
                f" Gen{matching_sizes[0].hypervisor_generations[0]} images only"
            )
        grid = matching_sizes[0].driver is Driver.GRID
        if self.driver == "cuda" and grid:
            raise ValueError(
                f"`image.driver` is `cuda`, with which {gpu} sizes show no card: they rent out a"
                " vGPU and need `grid`, or an image without driver (`none`)"
            )
        if self.driver == "grid" and not grid:
            raise ValueError(
                f"`image.driver` is `grid`, but {gpu} sizes have whole cards and need `cuda`"
            )


class LocalTable(BaseModel):
    """How the spot cloud on this computer behaves."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    notice_s: float = Field(
        default=5.0, ge=0, le=300, description="Warning before an eviction; 0 is none at all."
    )
    evict_after_s: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list, description="Evict each boot of the machine after so many seconds."
    )


class SshTable(BaseModel):
    """A machine that the user already has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(min_length=1, description="Its name or address.")
    port: int = Field(default=22, ge=1, le=65535, description="Its SSH port.")
    user: str = Field(min_length=1, description="Who to log in as.")
    key: str = Field(min_length=1, description="Private key file; `~` is your home.")
    host_key: str = Field(
        default="",
        description="Its public host key line; `qft doctor` reads it once and asks you to confirm.",
    )
    gpu: bool = Field(default=True, description="Whether to prepare a GPU on it.")
    python: str = Field(
        default="", description="An interpreter there that has everything; empty makes one."
    )

    # What these say becomes words of programs (`ssh`, a shell there): never an option, never two.

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        return _require_valid(value, host_error)

    @field_validator("user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        return _require_valid(value, user_error)

    @field_validator("key")
    @classmethod
    def _check_key(cls, value: str) -> str:
        return _require_valid(value, key_path_error)

    @field_validator("python")
    @classmethod
    def _check_python(cls, value: str) -> str:
        return value and _require_valid(value, program_error)


class AzureTable(BaseModel):
    """Which account to use."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    needs_max_price: ClassVar[bool] = True
    """Whether machines are really paid for, so that nobody may forget the cap."""

    subscription: str = Field(
        default="", description="Subscription id; empty uses AZURE_SUBSCRIPTION_ID."
    )
    grid_sha256: str = Field(
        default="",
        pattern="^([0-9a-fA-F]{64})?$",
        description="Checksum that the vGPU driver must have; empty demands the one seen first.",
    )

    @field_validator("subscription")
    @classmethod
    def _check_subscription(cls, value: str) -> str:
        return value and _require_valid(value, cloud_name_error)


class AwsTable(BaseModel):
    """Which account, network and image to use on AWS."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    needs_max_price: ClassVar[bool] = True

    profile: str = Field(
        default="", description="Profile of `~/.aws/config`; empty leaves it to AWS_PROFILE."
    )
    subnet: str = Field(
        default="",
        pattern="^(subnet-[0-9a-f]{8,17})?$",
        description="Subnet for accounts without a default VPC; empty takes the default ones.",
    )
    image: str = Field(
        default="",
        pattern="^(ubuntu|ami-[0-9a-f]{8,17})?$",
        description="`ubuntu` for plain Ubuntu, or an image's id `ami-…`; empty takes AWS's"
        " deep-learning base image.",
    )


class BudgetTable(BaseModel):
    """When to stop spending, counted across evictions, restarts and machines."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usd: float | None = Field(default=5.0, gt=0, description="Dollars in all.")
    hours: float | None = Field(default=24.0, gt=0, description="Billed machine hours in all.")
    evictions: int | None = Field(default=20, ge=0, description="Evictions to survive.")


def region_faults(vm: object) -> list[str]:
    """Return what is wrong with the regions of a table `vm` as its user wrote it, with the keys.

    A region that the vendor does not have, or where it sells no machine with the GPU, is found
    here without asking anybody. It is no part of the table's own check, since a run that rents
    already must be read again whatever its regions are called.
    """
    if not isinstance(vm, dict) or not isinstance(vm.get("regions"), list):
        return []
    provider = vm.get("provider")
    lists = _region_lists([*CLOUDS] if provider == ANY else _listed(provider))
    named = [one for one in vm["regions"] if isinstance(one, str)]
    gpu = _gpu_of(vm.get("gpu", VmTable.model_fields["gpu"].default))
    if len(lists) != 1:
        return [f"vm.regions: {problem}" for problem in _faults_in_several(lists, named, gpu)]
    (regions,) = lists
    unknown = [regions.name_problem(one) for one in named]
    found = [problem for problem in unknown if problem]
    if not found and gpu and (unsold := regions.sale_problem(gpu, named)):
        found = [unsold]
    if found:
        found[-1] = _followed(found[-1], regions.where(gpu))
    return [f"vm.regions: {problem}" for problem in found]


def _faults_in_several(lists: Sequence[RegionList], named: Sequence[str], gpu: str) -> list[str]:
    """Return the faults of regions that may be those of several vendors.

    A name is right if any of them has it; a card that one of them does not sell there is had of
    another.
    """
    found = []
    for name in named if lists else ():
        problems = [one.name_problem(name) for one in lists]
        if all(problems):
            found.append("; ".join(problems))
    unsold = [
        one.sale_problem(gpu, there)
        for one in lists
        if (there := [name for name in named if not one.name_problem(name)])
    ]
    return found or (unsold if gpu and unsold and all(unsold) else [])


def _region_lists(providers: Sequence[str]) -> list[RegionList]:
    """Return what is known of the regions of those providers that have any."""
    return [CATALOGS[name].region_list for name in providers if name in CATALOGS]


def _region_code(lists: Sequence[RegionList], name: str) -> str:
    """Return a region's code as the vendor spells it that has the region; as written if none."""
    codes = [(one, one.code(name)) for one in lists]
    spelled = [code for one, code in codes if code in one.regions]
    return (spelled or [code for _, code in codes] or [name])[0]


def _listed(value: object) -> list[str]:
    """Return one name, or several, as a list without what is no name."""
    some = value if isinstance(value, list | tuple) else [value]
    return [one for one in some if isinstance(one, str) and one]


def _without_list(value: object) -> object:
    """Return the entry of a list that has only one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _each_once(value: str | list[str]) -> str | list[str]:
    """Return the value; raises `ValueError` for a list that names the same twice."""
    twice = [one for one in _listed(value) if _listed(value).count(one) > 1]
    if twice:
        raise ValueError(f"`{twice[0]}` is listed twice")
    return value


def _followed(problem: str, listing: str) -> str:
    """Return a problem with a list behind it; after a question that begins a sentence."""
    if problem.endswith("?"):
        return f"{problem} {listing[:1].upper()}{listing[1:]}"
    return f"{problem}; {listing}"


def _gpu_of(name: object) -> str:
    """Return the catalog's name of a GPU, empty if there is none or it is not in the catalog."""
    try:
        return resolve_gpu(name).gpu.name if isinstance(name, str) and name else ""
    except UnknownGpu:  # told where the table itself is checked
        return ""


def _require_valid(value: str, find_error: Callable[[str], str]) -> str:
    """Return the value; raises `ValueError` if it is invalid."""
    if error := find_error(value):
        raise ValueError(error)
    return value
