"""Wraps the Azure SDKs, alone: they wait with our clock, and fail with our errors.

What is set right here, each found by running these very versions: the pollers' own threads and
30-second sleeps (operations are stepped by the caller instead), retries that sleep where nobody
can inject a clock, resource-provider registration that acts on reads and fails for every
`begin_*`, and exception classes that say nothing about what to do.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline import policies
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.core.policies import ARMHttpLoggingPolicy
from azure.mgmt.core.polling.arm_polling import ARMPolling
from azure.mgmt.resource.resources import ResourceManagementClient

from infra.azure.api_versions import api_version_of
from infra.azure.credentials import RenewableCredential, RenewingPolicy, chain
from infra.azure.error_parsing import ADVICE_S_MAX, error_info, is_unreadable, moment_of
from infra.azure.errors import AzureErrorInfo, ConflictError, translate
from infra.azure.settings import AzureSettings
from infra.errors import SignedOut

if TYPE_CHECKING:
    from azure.mgmt.network import NetworkManagementClient

RETRIES_MAX = 5
BACKOFF_S_MAX = 30.0
PAGES_MAX = 50
SKEW_S_MIN = 60.0
"""Answers take a while, and clocks are never the same: less than this is no difference."""
CONFLICT_PAUSES_S = (5.0, 15.0, 40.0)
"""Pauses before a request is repeated that was refused by a 409 of an unknown code."""
Answer = TypeVar("Answer")
IF_MISSING = MatchConditions.IfMissing


class Arm:
    """Azure Resource Manager for one account: the SDK's clients, made late, sharing one pool."""

    def __init__(
        self,
        settings: AzureSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        credential: Callable[[], Any] = chain,
        transport: RequestsTransport | None = None,
    ) -> None:
        self.settings = settings
        self._sleep = sleep
        self._clock = clock
        self._make_credential = credential
        self._skew_s = 0.0
        quieten()
        self._transport = transport or PatientTransport(settings, sleep)

    @cached_property
    def compute(self) -> ComputeManagementClient:
        """Machines, disks, sizes and their quota."""
        return ComputeManagementClient(**self._options())

    @cached_property
    def network(self) -> NetworkManagementClient:
        """Networks, addresses and firewalls: a third of the import, which a plan does not need."""
        from azure.mgmt.network import NetworkManagementClient

        return NetworkManagementClient(**self._options())

    @cached_property
    def resources(self) -> ResourceManagementClient:
        """Resource groups, tags and provider registration."""
        return ResourceManagementClient(**self._options())

    def warm(self) -> None:
        """Make the clients that offers need, before several threads ask for them at once."""
        _ = self.compute, self.resources

    def close(self) -> None:
        """Let go of open connections."""
        self._transport.close()
        if "_credential" in self.__dict__:
            self._credential.close()

    @cached_property
    def _credential(self) -> RenewableCredential:
        try:
            return RenewableCredential(self._make_credential)
        except ValueError as error:  # such as a misspelt AZURE_TOKEN_CREDENTIALS
            raise SignedOut(
                f"cannot sign in to Azure: {error}", hint="correct that variable, or unset it"
            ) from error

    def _options(self) -> dict[str, Any]:
        return {
            "credential": self._credential,
            "subscription_id": self.settings.subscription_id,
            "base_url": self.settings.arm_endpoint,
            "transport": self._transport,
            "policies": self._policies(),
        }

    def _policies(self) -> list[Any]:
        """The pipeline of each request: that of the SDK's own clients, but for one policy.

        Theirs also registers resource providers, by a POST and pauses of ten seconds, whenever a
        subscription is fresh, even where something is only looked at. Registration is ours:
        `registration.py`, when a machine is about to be made.
        """
        scope = f"{self.settings.audience}/.default"
        retries = policies.RetryPolicy(
            retry_total=RETRIES_MAX,
            retry_backoff_max=BACKOFF_S_MAX,
            retry_backoff_factor=0.5,
        )
        return [
            policies.RequestIdPolicy(),
            policies.HeadersPolicy(),
            policies.UserAgentPolicy(user_agent="qft"),
            policies.ProxyPolicy(),
            policies.ContentDecodePolicy(),
            policies.RedirectPolicy(),
            retries,
            RenewingPolicy(self._credential, scope),
            policies.CustomHookPolicy(raw_response_hook=self._note_clock),
            policies.DistributedTracingPolicy(),
            policies.SensitiveHeaderCleanupPolicy(),
            ARMHttpLoggingPolicy(),
        ]

    @property
    def raw_skew_s(self) -> float:
        """The same, to the second: for times that are compared with this computer's own."""
        return self._skew_s

    @property
    def skew_s(self) -> float:
        """How far Azure's clock was ahead of this computer's in its last answer; 0 if hardly."""
        return self._skew_s if abs(self._skew_s) > SKEW_S_MIN else 0.0

    def _note_clock(self, response: Any) -> None:
        """Note the difference of the clocks from an answer that has a date."""
        moment = moment_of(str(response.http_response.headers.get("Date", "")))
        if moment is not None:
            self._skew_s = moment.timestamp() - self._clock()

    def call(self, doing: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call one plain SDK operation; the answer as JSON values, errors as the seam's.

        Raises the seam's errors only, worded as "cannot `doing`".
        """

        def ask() -> Any:
            with translated(doing):
                return _plain(function(*args, **kwargs))

        return self._patiently(ask)

    def pages(self, doing: str, function: Callable[..., Any], **kwargs: Any) -> list[Any]:
        """List every item of a paged list."""
        with translated(doing):
            return [_plain(item) for item in function(**kwargs)]

    def send(self, doing: str, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """Send a request for which no client is installed; `path` is absolute within ARM.

        Its api-version is that of its resource type. Returns the JSON answer, `{}` for an empty
        one.
        """
        if "api-version=" not in path:
            path += f"{'&' if '?' in path else '?'}api-version={api_version_of(path)}"

        def ask() -> dict[str, Any]:
            with translated(doing):
                response = self.resources.send_request(HttpRequest(method, path, json=body))
                response.raise_for_status()
                answer = response.json() if response.content else {}
                if not isinstance(answer, dict):
                    raise ValueError(f"{str(answer)[:80]} where an object should be")  # noqa: TRY004
                return answer

        return self._patiently(ask)

    def listed(self, doing: str, path: str) -> list[dict[str, Any]]:
        """List every item of a paged list for which no client is installed.

        A next page on another host is not asked for: it would be shown our token.
        """
        items: list[dict[str, Any]] = []
        for _ in range(PAGES_MAX):
            answer = self.send(doing, "GET", path)
            items += [one for one in answer.get("value") or [] if isinstance(one, dict)]
            url = urlsplit(str(answer.get("nextLink") or ""))
            path = urlunsplit(("", "", url.path, url.query, ""))
            if url.netloc.lower() not in {"", self._host} or not path:
                break
        return items

    @property
    def _host(self) -> str:
        return urlsplit(self.settings.arm_endpoint).netloc.lower()

    def begin(
        self, doing: str, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Operation:
        """Start a long-running operation, or take one up again with `continuation_token=`.

        Returns as soon as ARM has accepted it; nothing polls until `Operation.settle`.
        """

        def ask() -> Operation:
            method = SteppedPolling(self.settings.polling_s, clock=self._clock, sleep=self._sleep)
            with translated(doing):
                poller = function(*args, polling=method, **kwargs)
            return Operation(doing, poller, method, resumed="continuation_token" in kwargs)

        return self._patiently(ask)

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Retry a few times where another write is in the way; raises the last refusal."""
        for pause_s in CONFLICT_PAUSES_S:
            try:
                return ask()
            except ConflictError:
                self._sleep(pause_s)
        return ask()


class Operation:
    """One long-running operation of ARM, polled only while somebody waits in `wait`."""

    def __init__(
        self, doing: str, poller: Any, method: SteppedPolling, *, resumed: bool = False
    ) -> None:
        self._resumed = resumed
        self._polled = False
        self.over = False
        """Whether Azure has said that it failed: asked again, it would say nothing else."""
        self._doing = doing
        self._poller = poller
        self._method = method

    @property
    def token(self) -> str:
        """Enough for another process to go on polling; holds no credential."""
        return str(self._poller.continuation_token())

    @property
    def times(self) -> dict[str, str]:
        """`startTime` and `endTime` as last read from Azure's page of the operation."""
        return self._method.times

    @property
    def answer(self) -> dict[str, Any]:
        """The resource as ARM described it, on acceptance or at the end; `{}` if it did not.

        An operation taken up from a token has nothing to show before it has been polled: the
        SDK's stand-in for the first response cannot be read as a resource.
        """
        if self._resumed and not self._polled:
            return {}
        with translated(self._doing):
            return dict(_plain(self._method.resource()) or {})

    def wait(self, *, wait_s: float) -> bool:
        """Poll until the operation ends, or for `wait_s`; whether it ended well within that.

        Raises the seam's error for an operation that ended badly.
        """
        self._polled = True
        with translated(self._doing):
            try:
                return self._method.poll(wait_s=wait_s)
            except HttpResponseError as error:
                status = int(error.status_code or 0)
                ended = 0 < status < 500 and status not in {408, 429}
                self.over = ended and not is_unreadable(error)
                raise


class SteppedPolling(ARMPolling):
    """Polls in the caller's thread, with the caller's clock, for no longer than requested."""

    def __init__(
        self, interval_s: float, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        super().__init__(timeout=interval_s)
        self._clock = clock
        self._pause = sleep
        self._deadline = 0.0
        self.times: dict[str, str] = {}

    def run(self) -> None:
        """Leave the polling to `poll`: the SDK would do it in a thread that nobody can stop."""

    def poll(self, *, wait_s: float) -> bool:
        """Poll to the end of the operation; False if that is more than `wait_s` away."""
        self._deadline = self._clock() + wait_s
        try:
            super().run()
        except _OutOfTimeError:
            return False
        return True

    def request_status(self, url: str) -> Any:
        """Request the operation's status, and note when it began and ended."""
        answer = super().request_status(url)
        with contextlib.suppress(ValueError, AttributeError):  # empty, or a page of another kind
            detail = answer.http_response.json()
            self.times |= {
                key: str(detail[key]) for key in ("startTime", "endTime") if key in detail
            }
        return answer

    def _sleep(self, delay: float) -> None:
        left = self._deadline - self._clock()
        if left <= 0:
            raise _OutOfTimeError
        self._pause(min(delay, left, ADVICE_S_MAX))


class _OutOfTimeError(Exception):
    """The caller's wait ended before the operation did."""


class PatientTransport(RequestsTransport):  # type: ignore[misc]  # exported without types
    """HTTP whose pauses between retries go through the injected `sleep`."""

    def __init__(self, settings: AzureSettings, sleep: Callable[[float], None]) -> None:
        super().__init__(
            connection_timeout=settings.connect_timeout_s, read_timeout=settings.read_timeout_s
        )
        self._pause = sleep

    def sleep(self, duration: float) -> None:
        """Wait as the retry policy asks, capped so that a wild `Retry-After` cannot hang us."""
        self._pause(min(duration, ADVICE_S_MAX))


def quieten() -> None:
    """Keep the SDKs from writing warnings beside our own words, unless somebody asked for them.

    They warn of every way to sign in that was tried, and of a registration that they get wrong.
    """
    logger = logging.getLogger("azure")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn whatever the SDK raises inside into the seam's error for "cannot `doing`"."""
    try:
        yield
    except AzureError as error:
        raise translate(error_info(error), doing=doing) from error
    except OSError as error:  # such as a CA bundle that does not exist
        raise translate(AzureErrorInfo(message=str(error)), doing=doing) from error
    except ValueError as error:  # such as a proxy's page where JSON should be
        detail = f"the answer cannot be read: {error}"
        raise translate(AzureErrorInfo(message=detail), doing=doing) from error


def _plain(value: Any) -> Any:
    """SDK models as JSON values with the names that travel on the wire."""
    return value.as_dict() if hasattr(value, "as_dict") else value
