"""Calls AWS through botocore; the only file that imports it, and translates each of its errors."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import botocore.exceptions
import botocore.parsers
import botocore.session
from botocore.config import Config

from infra.aws.errors import AwsErrorInfo, region_not_enabled, translate
from infra.aws.settings import AwsSettings
from infra.catalog.aws_regions import ENABLED_REGIONS
from infra.errors import BadRequest, NotAllowed, ProviderError, SignedOut, Transient

ATTEMPTS = 3
ACCOUNT_REGION = "us-east-1"
"""Where the account itself is asked about: every account has this region."""
SIGN_IN = "`aws sso login`, `aws login` or `aws configure`, then the same command"
_SIGNED_OUT = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.CredentialRetrievalError,
)
_MISCONFIGURED = (
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ConfigParseError,
    botocore.exceptions.NoRegionError,
)
_UNSENT = (
    botocore.exceptions.ParamValidationError,
    botocore.exceptions.UnknownServiceError,
    botocore.exceptions.OperationNotPageableError,
)


class AwsClients:
    """The clients of one account, one for each service and region; safe to use from threads.

    A session keeps its credentials, so one that was signed out is dropped: whoever signs in again
    meanwhile is heard without a restart.
    """

    def __init__(
        self,
        settings: AwsSettings,
        *,
        open_session: Callable[[], botocore.session.Session] | None = None,
    ) -> None:
        self._settings = settings
        self._open = open_session or self._open_session
        self._session: botocore.session.Session | None = None
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._account = ""
        self._lock = threading.RLock()

    def call(
        self,
        service: str,
        region: str,
        operation: str,
        *,
        doing: str,
        once: bool = False,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Call an operation by its name in Python, such as `run_instances`; return its answer.

        `doing` completes the sentence "cannot …" of an error. With `once` the SDK does not repeat
        the request by itself. Raises only classes of `infra/errors.py`.
        """
        try:
            client = self._client(service, region, once=once)
            answer = getattr(client, operation)(**parameters)
        except Exception as error:
            raise self._translated(error, doing=doing, region=region) from error
        return answered(answer, doing=doing)

    def pages(
        self, service: str, region: str, operation: str, key: str, *, doing: str, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Call an operation page by page; return what all its answers list under `key`."""
        try:
            client = self._client(service, region, once=False)
            answers: Iterator[dict[str, Any]] = client.get_paginator(operation).paginate(
                **parameters
            )
            found = [answered(answer, doing=doing) for answer in answers]
        except ProviderError:
            raise
        except Exception as error:
            raise self._translated(error, doing=doing, region=region) from error
        return [row for answer in found for row in answer.get(key) or []]

    def account(self) -> str:
        """The number of the account that is signed in; asked once."""
        if not self._account:
            answer = self.call(
                "sts", ACCOUNT_REGION, "get_caller_identity", doing="find out whose account this is"
            )
            self._account = str(answer["Account"])
        return self._account

    def close(self) -> None:
        """Let go of connections and credentials; the next call begins anew."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
            self._session = None
            self._account = ""

    def _client(self, service: str, region: str, *, once: bool) -> Any:
        with self._lock:
            if self._session is None:
                self._session = self._open()
            key = (service, region, once)
            if key not in self._clients:
                config = Config(
                    connect_timeout=self._settings.connect_timeout_s,
                    read_timeout=self._settings.read_timeout_s,
                    retries={"mode": "standard", "total_max_attempts": 1 if once else ATTEMPTS},
                    user_agent_extra="qft",
                    max_pool_connections=16,
                )
                self._clients[key] = self._session.create_client(
                    service, region_name=region, config=config
                )
            return self._clients[key]

    def _open_session(self) -> botocore.session.Session:
        return botocore.session.Session(profile=self._settings.profile or None)

    def _translated(self, error: Exception, *, doing: str, region: str) -> ProviderError:
        found = translated(error, doing=doing, region=region)
        if not isinstance(found, SignedOut):
            return found
        answered_by_aws = isinstance(error, botocore.exceptions.ClientError)
        if answered_by_aws and region not in ENABLED_REGIONS and self._is_signed_in():
            return region_not_enabled(region, doing=doing, words=str(error))
        self.close()
        return found

    def _is_signed_in(self) -> bool:
        """Whether AWS accepts the credentials in a region that every account has.

        A region that an account has not enabled refuses them like credentials that are wrong.
        """
        try:
            doing = "find out who is signed in"
            self.call("sts", ACCOUNT_REGION, "get_caller_identity", doing=doing)
        except ProviderError:
            return False
        return True


def answered(answer: dict[str, Any], *, doing: str) -> dict[str, Any]:
    """Return an answer without the SDK's own part; raise `Transient` if it is not AWS's.

    A page that a proxy sends with status 200 may parse as an answer in which nothing is listed, and
    would say that a machine is gone. Every answer of AWS has the id of its request.
    """
    if not answer.get("ResponseMetadata", {}).get("RequestId"):
        raise Transient(
            f"cannot {doing} just now: something between here and AWS answered in its place",
            hint="a proxy or a network that wants a login may do that; the same call is safe to"
            " repeat",
        )
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def translated(error: Exception, *, doing: str, region: str = "") -> ProviderError:
    """The seam's error for one that the SDK raised; raises again what is not the SDK's."""
    if isinstance(error, botocore.exceptions.ClientError):
        found = error.response.get("Error", {})
        meta = error.response.get("ResponseMetadata", {})
        info = AwsErrorInfo(
            code=str(found.get("Code", "")),
            message=str(found.get("Message", "")),
            status=int(meta.get("HTTPStatusCode", 0) or 0),
            region=region,
        )
        # A proxy's page becomes an error whose code is the status.
        if re.fullmatch(r"\d{3}", info.code):
            info = AwsErrorInfo(message=info.message, status=int(info.code), region=region)
        return translate(info, doing=doing)
    text = " ".join(str(error).split())
    if isinstance(error, _SIGNED_OUT) or type(error).__name__.startswith("Login"):
        return SignedOut(f"cannot {doing}: nobody is signed in to AWS ({text})", hint=SIGN_IN)
    if isinstance(error, _MISCONFIGURED):
        return NotAllowed(
            f"cannot {doing}: {text}", hint="`aws configure list` shows what is set, and where"
        )
    if isinstance(error, _UNSENT):
        return BadRequest(
            f"cannot {doing}: {text}", hint="this is a bug of qft: please report the line above"
        )
    if isinstance(error, (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError)):
        return Transient(f"cannot {doing} just now: {text}", hint="the same call is safe to repeat")
    raise error
