"""Asks an OpenAI-compatible service over HTTP; what it says is a stranger's word.

No redirect is followed, since it would carry the key away. Busy services, broken connections and
answers that are cut short are tried again; a refusal is not.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from commands.runs.judge.tokens import Usage, estimate_tokens
from commands.runs.web_opener import make_opener
from commands.ui.errors import HostError, UsageError
from infra.untrusted import NotPlain, parse, table, text, whole
from trainer.secret import Secret

ATTEMPTS = 5
TIMEOUT_S, ANSWER_S_MAX = 60.0, 180.0
RETRY_AFTER_S_MAX = 120.0
"""A service that wants a longer break is busy for good; what was judged is kept."""
ANSWER_BYTES_MAX = 1 << 20
CONTENT_CHARS_MAX = 100_000
ANSWER_TOKENS, ANSWER_TOKENS_MAX = 512, 4096
"""Of one answer: the second is for models that think aloud, and are cut by the first."""
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
ROW_REFUSED = frozenset({400, 413, 422})
"""What a service answers to one request that it does not take: too long, or not allowed."""
MESSAGE_CHARS_MAX = 300
TOO_LONG = re.compile(r"context|too (?:long|large|many)|exceed", re.IGNORECASE)


class RequestRefusedError(Exception):
    """The service does not take this very request; others may be fine."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge wrote, and what that used."""

    content: str
    cut: bool
    usage: Usage


@dataclass(kw_only=True)
class Endpoint:
    """A service with the model to ask; `clock` and `sleep` are in seconds, `wall` since 1970."""

    url: str
    model: str
    key: Secret | None
    loopback: bool
    clock: Callable[[], float]
    wall: Callable[[], float]
    sleep: Callable[[float], None]
    on_message: Callable[[str], None]
    timeout_s: float = TIMEOUT_S
    answer_s_max: float = ANSWER_S_MAX
    _tokens_key: str = "max_tokens"
    _tokens_max: int = ANSWER_TOKENS
    _extras: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "seed": 0})
    """What newer models may refuse; what was refused once is not sent again."""

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Return the answer to some messages.

        Raises:
            RequestRefusedError: the service does not take this request.
            UsageError: the key, the address or the model is wrong.
            HostError: the service does not answer, also after a few tries.
        """
        reply = self._ask_adapting(messages)
        if reply.cut and self._tokens_max < ANSWER_TOKENS_MAX:
            self._tokens_max = ANSWER_TOKENS_MAX
            again = self._ask_adapting(messages)
            return Reply(content=again.content, cut=again.cut, usage=reply.usage + again.usage)
        return reply

    def _ask_adapting(self, messages: list[dict[str, str]]) -> Reply:
        """Ask, and leave out what the service refuses by name."""
        while True:
            body = {
                "model": self.model,
                "messages": messages,
                self._tokens_key: self._tokens_max,
                **self._extras,
            }
            try:
                return self._read_reply(self._post(body), messages)
            except RequestRefusedError as error:
                if not self._adapt(str(error)):
                    raise

    def _adapt(self, message: str) -> bool:
        """Leave out the parameter that a refusal names; return whether there was one.

        A request that is too long names `max_tokens`, too, and no other name would make it shorter.
        """
        if TOO_LONG.search(message):
            return False
        if self._tokens_key == "max_tokens" and "max_tokens" in message:
            self._tokens_key = "max_completion_tokens"
            return True
        for name in self._extras:
            if name in message:
                del self._extras[name]
                return True
        return False

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered; return the JSON of the answer."""
        data = json.dumps(body).encode()
        trouble = ""
        for attempt in range(ATTEMPTS):
            wait_s = 2.0**attempt
            try:
                answer = table(parse(self._send(data), bytes_max=ANSWER_BYTES_MAX))
                if _choice(answer):
                    return answer
                trouble = f"its answer has no choice: {self._message_in(answer)}"
            except urllib.error.HTTPError as error:
                with error:
                    message = self._message_of(error)
                    wait_s = self._retry_after_s(error) or wait_s
                self._raise_if_final(error.code, message)
                trouble = f"it answers {error.code}{f': {message}' if message else ''}"
            except ssl.SSLCertVerificationError as error:
                raise self._unreachable(
                    f"its certificate is not trusted: {error.verify_message}"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise self._unreachable(
                        f"its certificate is not trusted: {reason.verify_message}"
                    ) from error
                trouble = f"no whole answer: {self._hidden(str(reason) or type(reason).__name__)}"
            except NotPlain as error:
                trouble = f"its answer cannot be read: {error}"
            if wait_s > RETRY_AFTER_S_MAX:
                break
            if attempt < ATTEMPTS - 1:
                self.on_message(f"{trouble}; trying again in {wait_s:.0f} s")
                self.sleep(wait_s)
        raise self._unreachable(trouble)

    def _send(self, data: bytes) -> bytes:
        """Send one request; return the body of the answer, whole."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(  # noqa: S310 - http or https, checked by the table
            f"{self.url}/chat/completions", data=data, headers=headers, method="POST"
        )
        if self.key is not None:
            # Unredirected, so that nothing in the library can send it on to anybody else.
            request.add_unredirected_header("Authorization", f"Bearer {self.key.reveal()}")
        opener = make_opener(loopback=self.loopback)
        ends_s = self.clock() + self.answer_s_max
        with opener.open(request, timeout=self.timeout_s) as answer:
            parts: list[bytes] = []
            while part := answer.read1(1 << 16):
                parts.append(part)
                if sum(map(len, parts)) > ANSWER_BYTES_MAX:
                    raise http.client.HTTPException("it is longer than any verdict")
                if self.clock() > ends_s:
                    raise TimeoutError(f"it took more than {self.answer_s_max:.0f} s")
            if answer.length:  # announced, and not there
                raise http.client.IncompleteRead(b"".join(parts), answer.length)
            return b"".join(parts)

    def _raise_if_final(self, status: int, message: str) -> None:
        """Raise the error of an answer that trying again does not change."""
        detail = f": {message}" if message else ""
        if status in {401, 403}:
            raise UsageError(
                f"the judge at {self.url} refuses the key ({status}{detail})",
                hint="check the environment variable that `judge.key_env` names; what was judged "
                "is kept",
            )
        if status == 404:
            raise UsageError(
                f"the judge at {self.url} has no such model or address ({status}{detail})",
                hint="check `judge.url` (it often ends in /v1) and `judge.model`",
            )
        if 300 <= status < 400:
            raise UsageError(
                f"the judge at {self.url} redirects to another address ({status}), which is not "
                "followed: it would get the key",
                hint="write the final address into `judge.url`",
            )
        if status in ROW_REFUSED:
            raise RequestRefusedError(message or f"it answers {status}")
        if status not in BUSY or "insufficient_quota" in message:
            raise UsageError(f"the judge at {self.url} answers {status}{detail}")

    def _read_reply(self, answer: dict[str, Any], messages: list[dict[str, str]]) -> Reply:
        """Return the words and the usage in an answer; an estimate where it names none."""
        first = _choice(answer)
        content = _content(table(first.get("message")).get("content"))
        used = table(answer.get("usage"))
        sent, received = (
            whole(used.get(key), most=10**9) for key in ("prompt_tokens", "completion_tokens")
        )
        if sent is None:
            sent = sum(estimate_tokens(one["content"]) for one in messages)
        if received is None:
            received = estimate_tokens(content)
        return Reply(
            content=self._hidden(content),
            cut=first.get("finish_reason") == "length",
            usage=Usage(prompt=sent, answer=received, requests=1),
        )

    def _message_of(self, error: urllib.error.HTTPError) -> str:
        """Return what an error's body says, short and without the key."""
        try:
            body = table(parse(error.read(ANSWER_BYTES_MAX), bytes_max=ANSWER_BYTES_MAX))
        except (NotPlain, OSError, http.client.HTTPException):
            return ""
        return self._message_in(body)

    def _message_in(self, body: dict[str, Any]) -> str:
        """Return the words of an error, by the names that services give them."""
        found = body.get("error")
        parts = [table(found).get(key) for key in ("message", "code", "param")]
        words = (
            [found, body.get("message"), body.get("detail")] if isinstance(found, str) else parts
        )
        shown = [text(one, most=MESSAGE_CHARS_MAX) for one in words if isinstance(one, str)]
        return self._hidden(" | ".join(one for one in shown if one))

    def _retry_after_s(self, error: urllib.error.HTTPError) -> float | None:
        """Return the seconds that the service asks to wait: a number, or a date."""
        value = str(error.headers.get("Retry-After") or "").strip()
        if value.isdecimal() and len(value) < 10:
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self.wall())
        except (ValueError, OverflowError):
            return None

    def _unreachable(self, trouble: str) -> HostError:
        return HostError(
            f"the judge at {self.url} cannot be asked: {trouble}",
            hint="what was judged is kept: the same command goes on",
        )

    def _hidden(self, message: str) -> str:
        return message if self.key is None else self.key.hide_in(message)


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice of an answer; empty if there is none."""
    choices = answer.get("choices")
    return table(choices[0]) if isinstance(choices, list) and choices else {}


def _content(value: object) -> str:
    """Return the text of a message: a string, or a list with parts of text."""
    if isinstance(value, list):
        parts = (table(one).get("text") for one in value)
        value = "".join(one for one in parts if isinstance(one, str))
    return value[:CONTENT_CHARS_MAX] if isinstance(value, str) else ""
