"""What of the client's request the governor's own requests repeat, field by field.

A probe (or label) asks for a forced answer on the same prompt. A generation (the answer or the continuation
that takes the place of withheld calls) is the client's own message, so it is sampled and sized as the client
asked. Neither may repeat what belongs to the one request: a handle of a prefill that was used up, a name, an
order to store the result.

The rows are the fields of `ChatCompletionRequest` in vLLM 0.32, and those of OpenAI's API that gateways take.
A field without a row is repeated: it may choose the model, the template or the route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Use(Enum):
    """What becomes of a field of the client's."""

    KEEP = "keep"
    DROP = "drop"
    SET = "set"
    """The governor writes its own value."""


KEEP, DROP, SET = Use.KEEP, Use.DROP, Use.SET


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field in a probe, and in a generation in the place of withheld calls."""

    probe: Use
    generation: Use
    why: str


def _prompt(why: str = "shapes the prompt, which must stay the same for the prefix cache") -> Field:
    return Field(KEEP, KEEP, why)


def _answer(
    why: str = "a forced answer may become the client's message, so it keeps the client's form",
) -> Field:
    return Field(KEEP, KEEP, why)


def _own_answer(why: str) -> Field:
    return Field(DROP, KEEP, why)


def _once(why: str) -> Field:
    return Field(DROP, DROP, why)


_EXTRAS = "returns data beside the text that nobody reads in a probe"
_SAMPLED = "without effect on a greedy answer"
_UNGOVERNED = "a request that uses it is not governed; its neutral values are harmless"

FIELDS: Final[Mapping[str, Field]] = {
    # The prompt.
    "model": _prompt("chooses the model"),
    "messages": Field(SET, SET, "the client's, as pruned, and the notices after them"),
    "tools": _prompt(),
    "functions": _prompt(),
    "documents": _prompt(),
    "chat_template": _prompt(),
    "chat_template_kwargs": Field(SET, SET, "the client's, and the probe's own that switch reasoning off"),
    "reasoning_effort": _prompt(),
    "media_io_kwargs": _prompt(),
    "mm_processor_kwargs": _prompt(),
    "add_generation_prompt": _prompt(),
    "add_special_tokens": _prompt(),
    "truncate_prompt_tokens": _prompt(),
    "truncation_side": _prompt(),
    "cache_salt": _prompt("separates the prefix caches of users"),
    # Calls.
    "tool_choice": Field(SET, SET, "`none` where no call may be made; a continuation keeps the client's"),
    "function_call": _answer("legacy form of tool_choice"),
    "parallel_tool_calls": _answer("without effect where no call may be made"),
    "logit_bias": Field(SET, SET, "the client's, and the ban on the token that starts a call"),
    "bad_words": Field(SET, SET, "the client's, and the ban on the text that starts a call"),
    "allowed_token_ids": _answer(),
    # The form of the answer.
    "response_format": _answer(),
    "structured_outputs": _answer(),
    "verbosity": _answer(),
    "stop": _answer(),
    "stop_token_ids": _answer(),
    "include_stop_str_in_output": _answer(),
    "ignore_eos": _answer("an answer that may not end is never taken for a finished one"),
    "skip_special_tokens": _answer(),
    "spaces_between_special_tokens": _answer(),
    "thinking_token_budget": _answer(),
    "include_reasoning": _own_answer("vLLM sends no logprobs at all where it is false"),
    "modalities": _own_answer("a probe is text"),
    "audio": _own_answer("a probe is text"),
    "prediction": _own_answer("predicts the client's own answer, and excludes logprobs"),
    "web_search_options": _own_answer("a probe must not search"),
    # Length.
    "max_tokens": Field(SET, KEEP, "a probe is short"),
    "max_completion_tokens": _own_answer("a probe has max_tokens"),
    "min_tokens": _own_answer("may exceed the length of a probe"),
    "repetition_detection": _own_answer("a probe is short"),
    # Sampling.
    "temperature": Field(SET, KEEP, "a probe is greedy"),
    "seed": _own_answer(_SAMPLED),
    "top_p": _answer(_SAMPLED),
    "top_k": _answer(_SAMPLED),
    "min_p": _answer(_SAMPLED),
    "watermarking": _answer(_SAMPLED),
    "frequency_penalty": _answer(),
    "presence_penalty": _answer(),
    "repetition_penalty": _answer(),
    "length_penalty": _answer(_UNGOVERNED),
    "use_beam_search": _answer(_UNGOVERNED),
    "echo": _answer(_UNGOVERNED),
    "continue_final_message": _answer(_UNGOVERNED),
    "n": Field(SET, KEEP, "one forced answer; a governed request has n = 1 anyway"),
    # What comes back.
    "stream": Field(SET, KEEP, "a probe is whole"),
    "stream_options": _own_answer("not allowed where nothing streams"),
    "stream_interval": _own_answer("a probe is whole"),
    "logprobs": Field(SET, SET, "what the governor measures"),
    "top_logprobs": Field(SET, SET, "what the governor measures"),
    "prompt_logprobs": _own_answer("defeats the prefix cache"),
    "logprob_token_ids": _own_answer("takes the place of the top logprobs"),
    "return_tokens_as_token_ids": _own_answer("takes the place of the tokens' texts"),
    "return_token_ids": _own_answer(_EXTRAS),
    "return_token_offsets": _own_answer(_EXTRAS),
    "routed_experts_prompt_start": _own_answer(_EXTRAS),
    "return_prompt_text": _once("the prompt is the first generation's, and would be sent again"),
    "mm_payload": _answer("for the render endpoints only"),
    "return_mm_kwargs": _answer("for the render endpoints only"),
    # Who asks, and how it is scheduled.
    "user": _answer("whom limits and abuse reports are about"),
    "safety_identifier": _answer("whom limits and abuse reports are about"),
    "session_id": _answer("names the conversation, not the request"),
    "prompt_cache_key": _answer("names the conversation, not the request"),
    "prompt_cache_retention": _answer("about the prompt, which is the same"),
    "service_tier": _answer("the client waits for the probe, too"),
    "priority": _answer("the client waits for the probe, too; a higher one would overtake others"),
    "vllm_xargs": _answer("arguments of custom samplers, which change what the model says"),
    # What belongs to the one request.
    "request_id": _once("names one request; a second one of that name may be refused"),
    "kv_transfer_params": _once("hands over the cache of one prefill, which is gone once it was fetched"),
    "ec_transfer_params": _once("hands over the encoder's cache of one request"),
    "store": _once("the client asked for its own message to be kept, no other"),
    "metadata": _once("describes the message that is kept"),
}  # fmt: skip


def repeated(body: Mapping[str, Any], *, probe: bool) -> dict[str, Any]:
    """What of the client's request `body` goes into one of the governor's own: a probe, or a generation."""
    return {name: value for name, value in body.items() if _use(name, probe=probe) is not Use.DROP}


def _use(name: str, *, probe: bool) -> Use:
    row = FIELDS.get(name)
    if row is None:
        return Use.KEEP
    return row.probe if probe else row.generation
