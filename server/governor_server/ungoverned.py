"""Requests with tools that pass without being governed: counted by why, and each reason told once in the log.

An agent that is not governed looks just like one that is. So whoever points one at the proxy must be able to
see that it speaks another API, say.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

from governor.request import Untouched, untouched
from governor_server.paths import normal_path
from governor_server.upstream import Body


class Ungoverned(StrEnum):
    """Why a request with tools is not governed."""

    RESPONSES_API = "responses_api"
    MESSAGES_API = "messages_api"
    COMPLETIONS_API = "completions_api"
    COHERE_API = "cohere_api"
    HEADER_OFF = "header_off"
    MALFORMED = "malformed"
    FORCED_CALL = "forced_call"
    SEVERAL_CHOICES = "several_choices"
    OTHER_LOGPROBS = "other_logprobs"
    OTHER_DECODING = "other_decoding"
    LEGACY_FUNCTIONS = "legacy_functions"


OTHER_APIS: Final[Mapping[str, Ungoverned]] = {
    "/v1/responses": Ungoverned.RESPONSES_API,
    "/v1/messages": Ungoverned.MESSAGES_API,
    "/v1/completions": Ungoverned.COMPLETIONS_API,
    "/cohere/v2/chat": Ungoverned.COHERE_API,
}
"""Paths to which agents post tools, and which are handed on as they are."""

_CHAT = "have it use chat completions"
ADVICE: Final[Mapping[Ungoverned, str]] = {
    Ungoverned.RESPONSES_API: (
        "a client speaks the Responses API; " + _CHAT + " "
        '(OpenAI Agents SDK: set_default_openai_api("chat_completions"))'
    ),
    Ungoverned.MESSAGES_API: f"a client speaks Anthropic's Messages API; {_CHAT} if it can",
    Ungoverned.COMPLETIONS_API: f"a client sends tools to the legacy completions API; {_CHAT}",
    Ungoverned.COHERE_API: f"a client speaks Cohere's API; {_CHAT} if it can",
    Ungoverned.HEADER_OFF: "a client sends the header `x-governor: off`",
    Ungoverned.MALFORMED: "the body is not a chat request that the governor can read",
    Ungoverned.FORCED_CALL: "a client demands a call (`tool_choice`: required, or a tool by name)",
    Ungoverned.SEVERAL_CHOICES: "a client asks for several choices (`n`)",
    Ungoverned.OTHER_LOGPROBS: "a client asks for logprobs in a form from which no entropy can be had",
    Ungoverned.OTHER_DECODING: "a client asks for `echo`, beam search or a continued message",
    Ungoverned.LEGACY_FUNCTIONS: "a client sends the legacy `functions`; have it send `tools`",
}
"""What the log says of each reason."""

_NOT_EMPTY: Final = re.compile(rb"\s*:\s*\[\s*[^\s\]]")
_LONGEST_KEY: Final = 64
"""Bytes kept of one piece of a body, so that a key that the next one ends is found."""

log = logging.getLogger(__name__)


class UngovernedRequests:
    """Counts them through `count`, and warns of the first one of each reason."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._told: set[Ungoverned] = set()

    def add(self, reason: Ungoverned) -> None:
        """One more request."""
        self._count(reason.value)
        if reason not in self._told:
            self._told.add(reason)
            log.warning(
                "a request with tools is not governed: %s. This is said once; "
                "governor_ungoverned_requests_total{reason=%r} counts",
                ADVICE[reason],
                reason.value,
            )

    def add_chat(self, body: object, raw: bytes, *, off: bool) -> None:
        """A chat request that passes ungoverned, if it has tools. `body` is the parsed one, None where it was
        not parsed; `off`: a header says that it is not to be governed."""
        if (reason := chat_reason(body, raw, off=off)) is not None:
            self.add(reason)

    def watched(self, api: Ungoverned, body: Body) -> Body:
        """The body of a request to another API, as it is; it is looked at on its way."""
        if isinstance(body, bytes):
            if has_list(body, b"tools"):
                self.add(api)
            return body
        return replace(body, pieces=self._watched(api, body.pieces))

    async def _watched(self, api: Ungoverned, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        before, found = b"", False
        try:
            async for piece in pieces:
                if not found:
                    seen = before + piece
                    before = seen[-_LONGEST_KEY:]
                    if found := has_list(seen, b"tools"):
                        self.add(api)
                yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


def other_api(path: str) -> Ungoverned | None:
    """The API that a POST to `path` may be for, however the path is spelled; None if it is none of these."""
    return OTHER_APIS.get(path) or OTHER_APIS.get(normal_path(path))


def chat_reason(body: object, raw: bytes, *, off: bool) -> Ungoverned | None:
    """Why a chat request with tools is not governed; None for one without."""
    if off or not isinstance(body, Mapping):
        found = Ungoverned.HEADER_OFF if off else Ungoverned.MALFORMED
        return found if has_list(raw, b"tools") or has_list(raw, b"functions") else None
    reason = untouched(body)
    if body.get("functions") and reason in (None, Untouched.NO_TOOLS):
        return Ungoverned.LEGACY_FUNCTIONS
    if reason is None or reason is Untouched.NO_TOOLS or not _has_tools(body):
        return None
    return Ungoverned(reason.value)


def _has_tools(body: Mapping[str, Any]) -> bool:
    return bool(body.get("tools") or body.get("functions"))


def has_list(raw: bytes, key: bytes) -> bool:
    """Whether a list that is not empty stands under `key` somewhere in a JSON text. Only looked for, not
    parsed: bodies may have megabytes. Within a string the quotes are escaped, so that none is mistaken.

    >>> has_list(b'{"tools": [{}]}', b"tools"), has_list(b'{"tools": []}', b"tools")
    (True, False)
    >>> has_list(rb'{"input": "\\"tools\\": [1]"}', b"tools")
    False
    """
    quoted = b'"' + key + b'"'
    at = raw.find(quoted)
    while at >= 0:
        if _NOT_EMPTY.match(raw, at + len(quoted)):
            return True
        at = raw.find(quoted, at + len(quoted))
    return False
