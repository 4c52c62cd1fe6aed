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

from governor.chunk import edited

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
    LEGACY_FUNCTIONS = "legacy_functions"
    """It offers tools in the form that came before `tools`."""


_OTHER_LOGPROBS = ("prompt_logprobs", "logprob_token_ids", "return_tokens_as_token_ids")
_OTHER_DECODING = ("echo", "use_beam_search", "continue_final_message")


def untouched(body: object) -> Untouched | None:
    """Why the parsed chat request `body` must not be governed; None if it may be.

    A request that upstream will refuse counts as malformed: what is injected must not make it acceptable.
    """
    if not isinstance(body, Mapping) or not _well_formed(body):
        return Untouched.MALFORMED
    if body.get("functions") or body.get("function_call"):
        return Untouched.LEGACY_FUNCTIONS
    if not _leaves_the_choice(body.get("tool_choice")):
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


def _leaves_the_choice(tool_choice: object) -> bool:
    """Whether the model may answer instead of calling."""
    if isinstance(tool_choice, Mapping) and tool_choice.get("type") == "allowed_tools":
        allowed = tool_choice.get("allowed_tools")
        return isinstance(allowed, Mapping) and allowed.get("mode") == "auto"
    return tool_choice in (None, "auto", "none")


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
    `reasoning` False: the client does not want it, and upstream is asked for it all the same, since vLLM
    leaves the logprobs out with the reasoning.
    """

    logprobs: bool
    asked: int
    sent: int
    token_ids: bool = False
    unchanged: bool = False
    """Upstream gets the client's own request, so that all of its answer is the client's."""
    reasoning: bool = True

    @classmethod
    def of(cls, body: Json, top_logprobs: int) -> ClientView:
        """The view of the client that sent `body`, when the governor wants `top_logprobs` of them."""
        asked = body.get("top_logprobs") or 0
        return cls(
            logprobs=bool(body.get("logprobs")),
            asked=asked,
            sent=asked if asked == ALL_TOKENS else max(asked, top_logprobs),
            token_ids=bool(body.get("return_token_ids")),
            reasoning=not _hides_reasoning(body),
        )

    @property
    def shows_all(self) -> bool:
        """Whether the client asked for all that upstream is asked for."""
        return self.unchanged or (self.logprobs and self.asked == self.sent and self.reasoning)

    def request(self, body: Json) -> dict[str, Any]:
        """`body` with what the governor needs to measure."""
        measured = {**body, "logprobs": True, "top_logprobs": self.sent}
        return measured if self.reasoning else {**measured, "include_reasoning": True}

    def chunk(self, chunk: Json) -> Json | None:
        """The stream chunk that the client would have received; None if none, `chunk` itself if all of it."""
        choices = chunk.get("choices")
        if self.shows_all or not choices or not isinstance(choices, list):
            return chunk
        shown = choices if self.reasoning else [_without_reasoning(choice, "delta") for choice in choices]
        if not self.logprobs and not self.token_ids and all(map(_is_for_us_alone, shown, choices)):
            return None
        return self._with_choices(chunk, shown)

    def response(self, response: Json) -> Json:
        """The response that the client would have received; `response` itself if nothing is to be taken
        out."""
        choices = response.get("choices")
        if self.shows_all or not choices or not isinstance(choices, list):
            return response
        if not self.reasoning:
            choices = [_without_reasoning(choice, "message") for choice in choices]
        return self._with_choices(response, choices)

    def _with_choices(self, source: Json, choices: list[Any]) -> Json:
        if self.reasoning and not any(isinstance(one, Mapping) and one.get("logprobs") for one in choices):
            return source
        return edited(source, choices=[self._choice(choice) for choice in choices])

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


REASONING_KEYS = ("reasoning", "reasoning_content")
"""The names of the field with the reasoning, the present one of vLLM first."""

_GUIDED = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice")


def _hides_reasoning(body: Json) -> bool:
    """Whether the client does not want the reasoning, and it can be asked for all the same.

    Not where it wants the tokens' data, which vLLM leaves out as well; and not where a grammar guides the
    answer, since vLLM lets no reasoning come before it then: the answer would be another one.
    """
    kept = (*_GUIDED, "logprobs", "return_token_ids")
    strict = any(_is_strict(tool) for tool in body.get("tools") or ())
    return body.get("include_reasoning") is False and not strict and not any(map(body.get, kept))


def _is_strict(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and bool(function.get("strict"))


def _without_reasoning(choice: Any, key: str) -> Any:
    """A choice whose message, or delta, has no reasoning, as vLLM writes it: null in a message, and in a
    delta of content or calls; no field in any other delta."""
    message = choice.get(key) if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return choice
    if key == "message":
        hidden = {name: None for name in REASONING_KEYS if name in message}
        return {**choice, key: {**message, **hidden}} if any(map(message.get, REASONING_KEYS)) else choice
    shown = {name: value for name, value in message.items() if name not in REASONING_KEYS}
    if shown and "role" not in shown:
        shown[REASONING_KEYS[0]] = None
    return choice if shown == message else {**choice, key: shown}


def _is_for_us_alone(shown: Any, sent: Any) -> bool:
    """Whether upstream sent a chunk's choice, of which this is `shown`, only for what the governor asked."""
    if not isinstance(shown, Mapping):
        return False
    empty = shown.get("delta") == {} and shown.get("finish_reason") is None
    return empty and (shown is not sent or bool(shown.get("logprobs")))
