"""Checks the tables `vm` and `budget` of `run.yaml` before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

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
from infra.image import ImageDriver, check_urn, generation_of, image_facts
from infra.names import cloud_name_error, host_error, key_path_error, program_error, user_error
from infra.vm_choices import (
    ANY,
    CLOUDS,
    DEFAULT_GPU,
    GPUS_MAX,
    CloudName,
    ProviderName,
    allow_any,
    branch_of,
    card_notes,
    each_once,
    followed,
    listed,
    region_code,
    without_list,
)

PRICE_DECIMALS_MAX = 5
"""Azure's `billingProfile.maxPrice` admits five decimals."""
NODES_MAX = 16


class VmTable(BaseModel):
    """Which machine to rent, where, and at what price at most."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    provider: Annotated[
        Annotated[ProviderName, Tag("kind one")]
        | Annotated[list[CloudName], Field(min_length=1), Tag("kind several")],
        Discriminator(branch_of),
    ] = Field(
        default="local",
        description="`local` plays a spot cloud on this computer, `azure` and `aws` rent, `ssh` is"
        " yours. A list such as `[azure, aws]`, or `any`, takes the cheapest place of several.",
        json_schema_extra=allow_any,
    )
    gpu: Annotated[
        Annotated[str, Tag("kind one")]
        | Annotated[list[str], Field(min_length=1), Tag("kind several")],
        Discriminator(branch_of),
    ] = Field(
        default=DEFAULT_GPU,
        description="A GPU of the catalog, such as T4, A10, A100; a list of them, or `any`, lets a"
        " run move to another card.",
    )
    gpus: int = Field(
        default=1,
        strict=True,  # `true` is not one card
        ge=1,
        le=GPUS_MAX,
        description="How many cards a machine is to have; their results are those of one.",
    )
    nodes: int = Field(
        default=1,
        strict=True,
        ge=1,
        le=NODES_MAX,
        description="How many such machines are to train together; their results are those of one.",
    )
    nodes_min: int = Field(
        default=1,
        strict=True,
        ge=1,
        le=NODES_MAX,
        description="With how few of them the training goes on; with fewer for 15 minutes, all are"
        " released until enough can be had.",
    )
    regions: list[str] = Field(
        default_factory=list, description="Regions in order of preference; several survive more."
    )
    max_price: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="USD per hour of the machine, hard: it goes to the cloud itself.",
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
        return without_list([*CLOUDS] if value == ANY else value)

    @field_validator("gpu", mode="before")
    @classmethod
    def _gpu_of_one(cls, value: object) -> object:
        """Take `any` for no card in particular, and a list of one for that one."""
        return without_list("" if value == ANY else value)

    @field_validator("provider")
    @classmethod
    def _check_provider(cls, value: str | list[str]) -> str | list[str]:
        return each_once(value)

    @field_validator("gpu")
    @classmethod
    def _check_gpu(cls, value: str | list[str]) -> str | list[str]:
        try:
            for name in listed(value):
                resolve_gpu(name)
        except UnknownGpu as error:
            raise ValueError(followed(str(error), error.hint)) from error
        return each_once(value)

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, value: list[str], info: ValidationInfo) -> list[str]:
        codes = [region_code(name, info.data.get("provider")) for name in value]
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
    def _check_nodes(self) -> VmTable:
        if self.nodes_min > self.nodes:
            raise ValueError(
                f"`nodes_min` is {self.nodes_min}, and `nodes` is {self.nodes}: the training cannot"
                " need more machines than it is to have"
            )
        if self.provider == "ssh" and self.nodes > 1:
            raise ValueError("`provider: ssh` has one machine, the one that you name: `nodes` is 1")
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
        return tuple(listed(self.provider))

    @property
    def rents(self) -> bool:
        """Whether machines are really rented, so that somebody pays for them."""
        return all(name in CLOUDS for name in self.providers)

    @property
    def cards(self) -> tuple[str, ...]:
        """The GPUs that may be used, as run.yaml spells them; empty for any."""
        return tuple(listed(self.gpu))

    @property
    def card(self) -> str:
        """The one GPU that may be used; empty if there are several, or any will do."""
        return self.gpu if isinstance(self.gpu, str) else ""

    @property
    def card_notes(self) -> list[str]:
        """What to say of the cards' names where a provider rents out another card for one."""
        return [note for card in self.cards for note in card_notes(self.providers, card)]

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
        grid = bool(gpu) and any(one.driver is Driver.GRID for one in AZURE.matching(gpu))
        if driver is ImageDriver.NONE:
            return "`vm.image` brings no driver: set-up installs one and reboots, some ten minutes"
        if driver is ImageDriver.CUDA and grid:
            return "`vm.image` brings the data-center driver: set-up replaces it by the vGPU driver"
        return ""

    def check_fits(self, gpu: str) -> None:
        """Raise `ValueError` if no machine with that GPU boots the image, or can use its driver."""
        matching_sizes = AZURE.matching(gpu)
        if not matching_sizes:  # reported where the config is read
            return
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
    evict_after_s: list[
        Annotated[
            Annotated[float, Field(gt=0), Tag("kind one")]
            | Annotated[list[Annotated[float, Field(gt=0)]], Tag("kind several")],
            Discriminator(branch_of),
        ]
    ] = Field(
        default_factory=list,
        description="Evict each boot of the machine after so many seconds; of several machines the"
        " first, or each by its own list in a list of lists.",
    )
    vendor: Literal["azure", "aws"] = Field(
        default="azure",
        description="Whose machines it plays: how they announce an eviction, and their first boot.",
    )

    @field_validator("evict_after_s")
    @classmethod
    def _check_script(cls, value: list[float | list[float]]) -> list[float | list[float]]:
        if len({isinstance(one, list) for one in value}) > 1:
            raise ValueError("write numbers, or a list of them for each machine, not both")
        return value

    @property
    def timed_evictions(self) -> list[float]:
        """The seconds after which boots are evicted, those of all machines of the run together."""
        script = [one if isinstance(one, list) else [one] for one in self.evict_after_s]
        return [seconds for times in script for seconds in times]


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

    @property
    def lacks_driver(self) -> bool:
        """Whether the image is known to bring no driver, so that set-up installs one."""
        return self.image == "ubuntu"


class BudgetTable(BaseModel):
    """When to stop spending, counted across evictions, restarts and machines."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usd: float | None = Field(default=5.0, gt=0, description="Dollars in all.")
    hours: float | None = Field(default=24.0, gt=0, description="Billed machine hours in all.")
    evictions: int | None = Field(default=20, ge=0, description="Evictions to survive.")
    disk_days: float | None = Field(
        default=None,
        ge=0,
        le=365,
        description="Days after the budget's end until AWS removes the machine with its disk, if"
        " nobody comes back; without it the disk stays, and bills.",
    )


def _require_valid(value: str, find_error: Callable[[str], str]) -> str:
    """Return the value; raises `ValueError` if it is invalid."""
    if error := find_error(value):
        raise ValueError(error)
    return value
