"""The probe: a short forced answer on the same prefix, and what it says about the model's certainty.

Messages and tools are the client's own, unchanged, so that the engine's prefix cache serves all of the
prompt but its last block. The call is banned by the token that starts one; the ban is a bias on the logits,
and the engine's logprobs are taken before it. The answer's figures are therefore conditioned on the ban: a
model that wanted to call would otherwise look unsure of its answer, or sure of one that it did not give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from governor.calls import digest
from governor.errors import LogprobsMalformed, ProbeFailed
from governor.fields import repeated
from governor.markup import answer_part, reads_as_call
from governor.spans import Markup, SpanKind, segment, spans
from governor.tokens import Token, tokens_from_logprobs

BAN: Final = -100
"""The `logit_bias` that excludes a token."""

SURE_MARGIN: Final = 0.95
"""Least lead of the first token over the second, in every token of a forced answer that is a sure one."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """`max_tokens` is the longest answer that counts as finished; `call_start` the text of the tool-call
    start token, `call_start_id` its id where it is known; `chat_template_kwargs` are added to the client's
    (to skip reasoning, say)."""

    max_tokens: int = 48
    top_logprobs: int = 20
    call_start_id: int | None = None
    call_start: str = "<tool_call>"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A forced answer.

    Entropies (nats), `least_margin` and `logprob` (a sum, in nats) are over the `tokens` tokens of the
    answer itself, without reasoning and end of turn. `prompt_tokens` and `completion_tokens` are what
    upstream says the probe cost. `finished`: the model ended the answer itself. `fingerprint` is derived
    from `text`, and stays where the text is not stored.
    """

    text: str
    finished: bool
    mean_entropy: float
    max_entropy: float
    least_margin: float
    logprob: float
    tokens: int
    prompt_tokens: int
    completion_tokens: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint(self.text))

    @property
    def is_sure(self) -> bool:
        """Whether the model may be taken at its word."""
        return self.least_margin >= SURE_MARGIN

    def same_answer(self, other: ProbeAnswer) -> bool:
        """Whether both texts are the same but for case and whitespace."""
        return self.fingerprint == other.fingerprint


def fingerprint(text: str) -> str:
    """16 hexadecimal digits that are equal for texts equal but for case and whitespace. It tells answers
    apart; it does not hide a short one from somebody who guesses."""
    plain = " ".join(text.split()).casefold()
    return digest(plain)[:16]


def probe_request(body: Mapping[str, Any], settings: ProbeSettings) -> dict[str, Any]:
    """The chat request that asks for the forced answer to the client's request `body`; greedy, whole, with
    logprobs."""
    request = without_calls(repeated(body, probe=True), settings)
    request |= {
        "stream": False,
        "n": 1,
        "temperature": 0,
        "max_tokens": settings.max_tokens,
        "logprobs": True,
        "top_logprobs": settings.top_logprobs,
    }
    return request


def without_calls(body: Mapping[str, Any], settings: ProbeSettings) -> dict[str, Any]:
    """A copy of `body` in which the model cannot call a tool: `tool_choice` "none" and a ban on the token
    that starts a call, and the settings' template arguments: one that begins to reason again arrives at the
    same call, and writes it as text.

    The engine alone does not see to that: with "none" it leaves the tools in the prompt and takes a call
    for content. Everything else stays the client's, since the forced generation of the action `answer` is
    the client's message.
    """
    request = {**body, "tool_choice": "none"}
    if settings.call_start_id is not None:
        request["logit_bias"] = {**(body.get("logit_bias") or {}), str(settings.call_start_id): BAN}
    elif settings.call_start:
        request["bad_words"] = [*(body.get("bad_words") or ()), settings.call_start]
    if settings.chat_template_kwargs:
        kwargs = body.get("chat_template_kwargs") or {}
        request["chat_template_kwargs"] = {**kwargs, **settings.chat_template_kwargs}
    return request


def probe_answer(
    response: Mapping[str, Any],
    vocab_size: int,
    markup: Markup | None = None,
    tools: Collection[str] = (),
) -> ProbeAnswer:
    """The probe's answer in upstream's whole chat response (`markup` None: the default one) to a request that
    offered `tools`.

    Raises `ProbeFailed` with the reason `malformed`, `no_logprobs`, `empty` (no token of an answer) or
    `call` (a tool call, or what reads like one).
    """
    markup = markup or Markup()
    choice, message = _choice(response)
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise ProbeFailed("malformed", "content is no text")
    if message.get("tool_calls") or message.get("function_call"):
        raise ProbeFailed("call")
    return answer_of(
        text or "",
        _answer_tokens(choice, vocab_size, markup),
        finished=choice.get("finish_reason") == "stop",
        tools=tools,
        markup=markup,
        usage=response.get("usage"),
    )


def answer_of(
    text: str,
    tokens: Sequence[Token],
    *,
    finished: bool,
    tools: Collection[str],
    markup: Markup,
    usage: object = None,
) -> ProbeAnswer:
    """The answer that the content `text` is, made of these tokens, of a model that was offered `tools`.

    Raises `ProbeFailed` with the reason `empty` or `call`.
    """
    answer = answer_part(text, markup)
    if answer and reads_as_call(answer, tools, markup, ended=finished):
        raise ProbeFailed("call")
    if not answer or not answer.strip() or not tokens:
        raise ProbeFailed("empty")
    entropies = [token.entropy.value for token in tokens]
    return ProbeAnswer(
        text=text,
        finished=finished,
        mean_entropy=sum(entropies) / len(tokens),
        max_entropy=max(entropies),
        least_margin=min(token.margin for token in tokens),
        logprob=sum(token.logprob for token in tokens),
        tokens=len(tokens),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        fingerprint=fingerprint(answer),
    )


def _choice(response: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        choice = response["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError) as error:
        raise ProbeFailed("malformed", f"no choices[0].message: {error!r}") from error
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise ProbeFailed("malformed", "choices[0].message is no object")
    return choice, message


def _answer_tokens(choice: Mapping[str, Any], vocab_size: int, markup: Markup) -> tuple[Token, ...]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, Sequence) or not content:
        raise ProbeFailed("no_logprobs")
    try:
        tokens = tokens_from_logprobs(content, vocab_size, banned=markup.call[0] or None)
    except LogprobsMalformed as error:
        raise ProbeFailed("malformed", error.detail) from error
    found = spans([token.text for token in tokens], markup)
    return segment(tokens, found, {SpanKind.CONTENT})


def _count(usage: object, key: str) -> int:
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) else 0
