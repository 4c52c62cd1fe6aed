"""The probe: a short forced answer on the same prefix, and what it says about the model's certainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from governor.spans import Markup


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """`call_start` is the text of the tool-call start token, `call_start_id` its id where it is known."""

    max_tokens: int = 48
    top_logprobs: int = 20
    call_start_id: int | None = None
    call_start: str = "<tool_call>"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A forced answer. Entropies (nats), margin and `logprob` (their sum) are over the `tokens` tokens of
    the answer itself, without end-of-turn and reasoning; `prompt_tokens` and `completion_tokens` are what
    upstream says the probe cost."""

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

    def same_answer(self, other: ProbeAnswer) -> bool:
        """Whether both texts are the same but for case and whitespace."""
        raise NotImplementedError


def probe_request(body: Mapping[str, Any], settings: ProbeSettings) -> dict[str, Any]:
    """The chat request that asks for the forced answer to the client's request `body`."""
    raise NotImplementedError


def without_calls(body: Mapping[str, Any], settings: ProbeSettings) -> dict[str, Any]:
    """A copy of `body` in which the model cannot call a tool: `tool_choice` "none" and the ban on the
    tool-call start token.

    Everything else stays the client's: for the forced generation that becomes the message (action `answer`).
    """
    raise NotImplementedError


def probe_answer(response: Mapping[str, Any], vocab_size: int, markup: Markup | None = None) -> ProbeAnswer:
    """The probe's answer in upstream's chat response (`markup` None: the default one). Raises
    `ProbeFailed`."""
    raise NotImplementedError
