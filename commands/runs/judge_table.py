"""The table `judge` of run.yaml: a model of the user's that compares answers; it stays at home."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from commands.runs.web_address import is_loopback

USD_MAX = 100_000
CRITERIA = "Which answer is more correct, more helpful and clearer?"


class TokenPrices(BaseModel):
    """What a million tokens cost, in dollars; a service's own price list has them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )

    prompt: float = Field(alias="in", ge=0, le=USD_MAX, description="Per million tokens sent.")
    answer: float = Field(alias="out", ge=0, le=USD_MAX, description="Per million received.")


class JudgeTable(BaseModel):
    """Who compares answers, by which criteria, and what that may cost; `qft run` never reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str = Field(
        max_length=2000,
        description="Address of an OpenAI-compatible service, such as https://api.example.com/v1.",
    )
    model: str = Field(min_length=1, max_length=200, description="The model that judges.")
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$",
        description="The environment variable at home that holds the key; none if none is needed.",
    )
    usd_per_mtok: TokenPrices | None = Field(
        default=None, description="Prices of the model, such as {in: 0.15, out: 0.60}."
    )
    budget_usd: float | None = Field(
        default=None, gt=0, le=USD_MAX, description="Ask no more once this much was spent."
    )
    rows: int = Field(
        default=100, ge=1, le=100_000, description="Held-out rows to compare, at most."
    )
    criteria: str = Field(
        default=CRITERIA,
        min_length=1,
        max_length=4000,
        description="By what the better answer is told from the other, in your words.",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)  # raises ValueError for what is none
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
            raise ValueError("write a whole address, such as `https://api.example.com/v1`")
        if parts.port == 0:
            raise ValueError("port 0 is nobody's")
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError(
                "an address with a password or a `?` in it may hold a key: name the environment "
                "variable of the key in `key_env`"
            )
        if parts.fragment:
            raise ValueError("leave out what begins with `#`")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError(
                "plain `http` would show the key and the answers to everybody on the way: write "
                "`https`; only an address of this computer may be `http`"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _a_budget_needs_prices(self) -> JudgeTable:
        if self.budget_usd is not None and self.usd_per_mtok is None:
            raise ValueError(
                "`budget_usd` is counted by `usd_per_mtok`: give the prices of a million tokens, "
                "such as `usd_per_mtok: {in: 0.15, out: 0.60}`"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether the service runs on this computer."""
        return is_loopback(urlsplit(self.url).hostname or "")

    @property
    def free(self) -> bool:
        """Whether nobody is charged: by the prices, or because it is a service of this computer."""
        prices = self.usd_per_mtok
        return self.loopback if prices is None else prices.prompt == prices.answer == 0
