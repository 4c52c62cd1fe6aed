"""What may be governed, what the governor adds to a request, and how that is taken out of the answer again.

vLLM reports the distribution that a token was drawn from only if `logprobs` is asked for. So the governor
asks, and the client must not notice. That is more than a field to remove: with logprobs vLLM also sends
stream chunks for tokens that the tool parser swallows (`"delta": {}`), which it leaves out otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]

ALL_TOKENS = -1
"""`top_logprobs` for the whole vocabulary."""


class Untouched(StrEnum):
    """Why a request goes upstream byte for byte, without being measured."""

    MALFORMED = "malformed"
    NO_TOOLS = "no_tools"
    FORCED_CALL = "forced_call"
    SEVERAL_CHOICES = "several_choices"
    OTHER_LOGPROBS = "other_logprobs"
    """It asks for logprobs in a form from which no entropy can be had, or that defeats the prefix cache."""
    OTHER_DECODING = "other_decoding"


_OTHER_LOGPROBS = ("prompt_logprobs", "logprob_token_ids", "return_tokens_as_token_ids")
_OTHER_DECODING = ("echo", "use_beam_search", "continue_final_message")


def untouched(body: object) -> Untouched | None:
    """Why the parsed chat request `body` must not be governed; None if it may be.

    A request that upstream will refuse counts as malformed: what is injected must not make it acceptable.
    """
    if not isinstance(body, Mapping) or not _well_formed(body):
        return Untouched.MALFORMED
    if body.get("tool_choice") not in (None, "auto", "none"):
        return Untouched.FORCED_CALL
    if body.get("n") not in (None, 1):
        return Untouched.SEVERAL_CHOICES
    if any(body.get(name) is not None and body[name] is not False for name in _OTHER_LOGPROBS):
        return Untouched.OTHER_LOGPROBS
    if any(body.get(name) for name in _OTHER_DECODING):
        return Untouched.OTHER_DECODING
    if not body.get("tools") and not any(message.get("role") == "tool" for message in body["messages"]):
        return Untouched.NO_TOOLS
    return None


def _well_formed(body: Json) -> bool:
    messages, top, tools = body.get("messages"), body.get("top_logprobs"), body.get("tools")
    return (
        isinstance(messages, list)
        and all(isinstance(message, Mapping) for message in messages)
        and isinstance(tools, list | None)
        and isinstance(body.get("stream"), bool | None)
        and isinstance(body.get("logprobs"), bool | None)
        and (top is None or (type(top) is int and (not top or bool(body.get("logprobs")))))
    )


@dataclass(frozen=True, slots=True)
class ClientView:
    """What of the tokens' data the client asked for; everything else that arrives is for the governor alone.

    `asked` and `sent` are numbers of `top_logprobs` (`ALL_TOKENS`: every one): the client's, and upstream's.
    """

    logprobs: bool
    asked: int
    sent: int
    token_ids: bool = False
    unchanged: bool = False
    """Upstream gets the client's own request, so that all of its answer is the client's."""

    @classmethod
    def of(cls, body: Json, top_logprobs: int) -> ClientView:
        """The view of the client that sent `body`, when the governor wants `top_logprobs` of them."""
        asked = body.get("top_logprobs") or 0
        sent = asked if asked == ALL_TOKENS else max(asked, top_logprobs)
        return cls(bool(body.get("logprobs")), asked, sent, bool(body.get("return_token_ids")))

    @property
    def shows_all(self) -> bool:
        """Whether the client asked for all that upstream is asked for."""
        return self.unchanged or (self.logprobs and self.asked == self.sent)

    def request(self, body: Json) -> dict[str, Any]:
        """`body` with what the governor needs to measure."""
        return {**body, "logprobs": True, "top_logprobs": self.sent}

    def chunk(self, chunk: Json) -> Json | None:
        """The stream chunk that the client would have received; None if none, `chunk` itself if all of it."""
        choices = chunk.get("choices")
        if self.shows_all or not choices or not isinstance(choices, list):
            return chunk
        if not self.logprobs and not self.token_ids and all(map(_only_logprobs, choices)):
            return None
        return self._with_choices(chunk, choices)

    def response(self, response: Json) -> Json:
        """The response that the client would have received; `response` itself if nothing is to be taken
        out."""
        choices = response.get("choices")
        if self.shows_all or not choices or not isinstance(choices, list):
            return response
        return self._with_choices(response, choices)

    def _with_choices(self, source: Json, choices: list[Any]) -> Json:
        if not any(isinstance(choice, Mapping) and choice.get("logprobs") for choice in choices):
            return source
        return {**source, "choices": [self._choice(choice) for choice in choices]}

    def _choice(self, choice: Any) -> Any:
        logprobs = choice.get("logprobs") if isinstance(choice, Mapping) else None
        if not logprobs:
            return choice
        return {**choice, "logprobs": self._trimmed(logprobs) if self.logprobs else None}

    def _trimmed(self, logprobs: Any) -> Any:
        """The first `asked` alternatives: vLLM puts the sampled token first whatever its rank, then the
        others in order, so that a shorter list is a prefix of a longer one. What is not of the documented
        shape holds nothing that was asked for here."""
        if not isinstance(logprobs, Mapping):
            return logprobs
        trimmed = {
            key: [self._token(token) for token in logprobs[key]]
            for key in ("content", "refusal")
            if isinstance(logprobs.get(key), list)
        }
        return {**logprobs, **trimmed}

    def _token(self, token: Any) -> Any:
        top = token.get("top_logprobs") if isinstance(token, Mapping) else None
        return {**token, "top_logprobs": top[: self.asked]} if isinstance(top, list) else token


def _only_logprobs(choice: Any) -> bool:
    """Whether upstream sent this chunk for its logprobs alone."""
    return (
        isinstance(choice, Mapping)
        and choice.get("delta") == {}
        and choice.get("finish_reason") is None
        and bool(choice.get("logprobs"))
    )
