"""The table `track` of run.yaml: where the metrics of a run go; it stays at home, keys do not fit.

`track: [trackio, mlflow]` takes the defaults; `track: {mlflow: {uri: sqlite:///runs.db}}` does not.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

NAME_MAX = 100
TRACKERS = ("trackio", "wandb", "mlflow")


class TrackioTable(BaseModel):
    """Trackio's database on this computer (`$TRACKIO_DIR`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(
        default="qft",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        max_length=NAME_MAX,
        description="The project that the run belongs to.",
    )


class WandbTable(BaseModel):
    """Weights & Biases; the key is in `WANDB_API_KEY` at home, or where `wandb login` put it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(
        default="qft",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=NAME_MAX,
        description="The project that the run belongs to.",
    )
    entity: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=NAME_MAX,
        description="The team or user; the account's own default if not given.",
    )
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="`offline` writes folders for `wandb sync` into out/NAME/wandb once the run "
        "has ended.",
    )


class MlflowTable(BaseModel):
    """MLflow; a password is in `MLFLOW_TRACKING_PASSWORD` at home, a token likewise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="`sqlite:///FILE` (from run.yaml's folder) or a server's https address; "
        "`$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db`, if not given.",
    )
    experiment: str = Field(
        default="qft",
        min_length=1,
        max_length=NAME_MAX,
        description="The experiment that the run belongs to.",
    )

    @field_validator("uri")
    @classmethod
    def _can_be_used(cls, uri: str | None) -> str | None:
        if uri is not None and (problem := uri_problem(uri)):
            raise ValueError(problem)
        return uri


class TrackTable(BaseModel):
    """Where the metrics of a run go, each tracker with its settings; None for one not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trackio: TrackioTable | None = Field(default=None, description="Trackio, on this computer.")
    wandb: WandbTable | None = Field(default=None, description="Weights & Biases.")
    mlflow: MlflowTable | None = Field(default=None, description="MLflow.")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Let editors take a list of names, or one, too."""
        name = {"enum": list(TRACKERS)}
        return {"anyOf": [name, {"type": "array", "items": name}, handler(core_schema)]}

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """Read a list of names, or one name, as trackers with their defaults."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            return value
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"`{name}` is no tracker: there are {', '.join(TRACKERS)}")
        return {name: {} for name in names}

    @model_validator(mode="after")
    def _one_at_least(self) -> TrackTable:
        if not self.names:
            raise ValueError(f"name one of {', '.join(TRACKERS)}, or leave `track` out")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are used."""
        return tuple(name for name in TRACKERS if getattr(self, name) is not None)

    def with_names(self, names: tuple[str, ...]) -> TrackTable:
        """Return these trackers alone; one that is not in the table gets its defaults."""
        given = self.model_dump(include=set(names), exclude_none=True)
        return TrackTable.model_validate({name: given.get(name, {}) for name in names})


def uri_problem(uri: str) -> str:
    """Say why MLflow's store cannot be at a URI; empty if it can."""
    try:
        parts = urlsplit(uri)
        secret = parts.username is not None or parts.password is not None or bool(parts.query)
    except ValueError:
        return "this is no address"
    if secret:
        return (
            "a user, a password or a `?` in it would be kept in files: give them as "
            "`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`"
        )
    if parts.scheme == "sqlite":
        absent = not uri.startswith("sqlite:///") or not parts.path.strip("/")
        return "name a file, such as `sqlite:///mlflow.db`" if absent else ""
    if parts.scheme in {"http", "https"} and parts.hostname:
        return ""
    return (
        "write `sqlite:///mlflow.db`, or a server's address (MLflow has no store of plain files "
        "since 3.13)"
    )
