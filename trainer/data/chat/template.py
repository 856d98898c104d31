"""Renders conversations with a tokenizer's chat template, within limits and on a given day.

A chat template is a program of whoever published the base. It runs in jinja's sandbox, set up as
transformers sets it up (a test compares the texts), with three differences: the day comes from
outside, every turn of a loop and every call is counted against a limit, and no text or list in it
can grow beyond one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as clock_time
from typing import TYPE_CHECKING, Any

from trainer.data.chat.limits import Limits, TemplateLimitError
from trainer.data.template import MissingFieldError

if TYPE_CHECKING:
    import jinja2


class TemplateRefusal(MissingFieldError):  # noqa: N818 - an answer of the template, not a bug
    """A chat template does not take a conversation; `reason` is its own word for it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the chat template refuses the conversation ({reason})")


@dataclass(kw_only=True)
class ChatTemplate:
    """One chat template, ready to render; a `day` is what it sees as today."""

    source: str
    day: date
    special_tokens: Mapping[str, Any]
    limits: Limits = field(default_factory=Limits)
    _compiled: Any = None

    @classmethod
    def of(cls, tokenizer: Any, *, day: date, tools: bool = False) -> ChatTemplate | None:
        """Return the template that a tokenizer has for a conversation (with tools), or None."""
        given = getattr(tokenizer, "chat_template", None)
        if isinstance(given, Mapping):
            given = given.get("tool_use" if tools and "tool_use" in given else "default")
        if not given:
            return None
        return cls(source=given, day=day, special_tokens=tokenizer.special_tokens_map)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        prompting: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages; `prompting` asks for the beginning of an answer behind them.

        Raises:
            TemplateRefusal: the template, or jinja for it, refuses the conversation.
            TemplateLimitError: it takes too long or writes too much.
        """
        from jinja2 import TemplateError

        chat = [_aliased(message) for message in messages]
        self.limits.begin()
        try:
            if self._compiled is None:
                self._compiled = self._environment().from_string(self.source)
            pieces, length = [], 0
            for piece in self._compiled.generate(
                **{
                    **self.special_tokens,
                    **(kwargs or {}),
                    "messages": chat,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": prompting,
                }
            ):
                pieces.append(piece)
                length += len(piece)
                self.limits.size(length)
        except TemplateError as error:
            raise TemplateRefusal(str(error.message or error)) from error
        except TemplateLimitError:
            raise
        except Exception as error:  # whatever a stranger's program can raise is its refusal
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)

    def _counted(self, values: Any) -> Any:
        """Return the values of a loop so that its turns are counted."""
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
            return self._each(values)
        return _Counted(values, self)

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.limits.step()
            yield value

    def _environment(self) -> jinja2.Environment:
        from trainer.data.chat.sandbox import make_environment

        return make_environment(self.limits, counted=self._counted, strftime_now=self._strftime)

    def _strftime(self, form: str) -> str:
        return datetime.combine(self.day, clock_time()).strftime(form)


class _Counted(Sequence[Any]):
    """A list whose loops are counted; jinja asks for its length, as of the list itself."""

    def __init__(self, values: Sequence[Any], template: ChatTemplate) -> None:
        self._values = values
        self._template = template

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, at: Any) -> Any:
        return self._values[at]

    def __iter__(self) -> Iterator[Any]:
        return self._template._each(self._values)  # noqa: SLF001 - one thing in two classes


def _aliased(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose reasoning stands under both names that templates read."""
    reasoning = message.get("reasoning_content")
    return dict(message) if reasoning is None else {"thinking": reasoning, **message}
