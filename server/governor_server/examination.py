"""The checks of an upstream, each tried out on the wire.

What the proxy relies on is tried, not looked up: a version number says little about a server's flags and
about a gateway in between. About thirty requests of a few tokens each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from governor.calls import tool_names
from governor.errors import GovernorError, ProbeFailed
from governor.markup import reads_as_call
from governor.notices import NOTICE_REPEATED
from governor.probe import ProbeAnswer, probe_answer, probe_request, without_calls
from governor.request import ClientView, Json
from governor.tool_parsers import parser_of
from governor.turn import Turn
from governor_server.balancer import shows_health
from governor_server.diagnosis import Finding, Result
from governor_server.evidence import Answer, at, excerpt
from governor_server.settings import Settings
from governor_server.upstream import UpstreamError

OK, WARN, MISSING, SKIPPED = Result.OK, Result.WARN, Result.MISSING, Result.SKIPPED

CALL_TOKENS: Final = 512
"""Room for the reasoning before a call, and the call."""
CHAT: Final = "/v1/chat/completions"
CACHE_TEXT: Final = "What is it? " * 120
"""Several blocks of a prefix cache, which are of up to 128 tokens, and no more than small models can read."""
CACHE_HITS: Final = re.compile(
    rb"^vllm:prefix_cache_hits(?:_total)?(?:\{[^\n]*\})? ([0-9.e+]+)$", re.MULTILINE
)
BAN_FIX: Final = (
    "Use vLLM, which honours `logit_bias` and `bad_words`; a gateway before it must hand them on. "
    "`--policy rules` works without."
)
ADDITION_FIXES: Final = {
    "request": "Start vLLM with --max-logprobs of at least governance.top_logprobs; a gateway before it must "
    "hand on `logprobs` and `top_logprobs` beside `tools`, streamed and whole.",
    "answer": "Set governance.action: notice, or have `tool_choice` none and the ban on the call accepted.",
    "continuation": "Set governance.action: answer, or have a tool's result after a call accepted.",
}
"""What to change where a server refuses what the proxy adds."""
FASTER: Final = 0.7
"""The share of the first answer's time below which a second one looks cached."""

SAMPLE: Final[Json] = {
    "messages": [
        {
            "role": "system",
            "content": "Use the tool for every question. Answer in as few words as possible.",
        },
        {"role": "user", "content": "What is the capital of Norway? Look it up with the tool."},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "encyclopedia",
                "description": "Looks something up in the encyclopedia.",
                "parameters": {
                    "type": "object",
                    "properties": {"query": {"type": "string"}},
                    "required": ["query"],
                },
            },
        }
    ],
}
"""A question that wants the tool and has a short answer: the forced answer must end in a few tokens."""


Ask = Callable[[str, str, Json | None], Awaitable[Answer]]
"""Sends method, path and JSON body. Raises `UpstreamError`."""


class Examination:
    """The checks, one after the other, each with what the earlier ones learned.

    `sample` holds the messages and the tools to try, `nonce` a text that makes its prompts new to the
    server's cache.
    """

    def __init__(
        self,
        ask: Ask,
        settings: Settings,
        *,
        model: str | None = None,
        sample: Json = SAMPLE,
        nonce: str = "",
    ) -> None:
        self._ask = ask
        governance = settings.build_governance(None, None)
        self._key = settings.upstream.api_key
        self._vocab_size = governance.vocab_size
        self._markup = governance.markup
        self._probe = governance.probe
        self._model = model or ""
        self._sample = sample
        self._nonce = nonce
        self._models = Answer(0, b"")
        self._first_token = ""
        self._takes_logprobs = True
        self._free: Turn | None = None
        self._forced: Turn | None = None

    async def findings(self, progress: Callable[[str], None] = lambda _: None) -> tuple[Finding, ...]:
        """The results of all checks. Raises `UpstreamError` when nothing answers the first one."""
        found: dict[str, Finding] = {}
        for check, (examine, needs) in self._checks().items():
            progress(f"checking: {check}")
            lacking = [need for need in needs if found[need].result in (MISSING, SKIPPED)]
            if lacking:
                found[check] = Finding(check, SKIPPED, f"not examined without: {', '.join(lacking)}")
                continue
            try:
                found[check] = await examine(check)
            except UpstreamError as error:
                if not found:
                    raise
                fix = "Look at the server's log; give a slow one more time with --timeout."
                found[check] = Finding(check, MISSING, str(error), "The server did not answer this.", fix)
        return tuple(found.values())

    def _checks(self) -> Mapping[str, tuple[Callable[[str], Awaitable[Finding]], tuple[str, ...]]]:
        """Each check with those that it makes no sense without."""
        return {
            "server": (self._check_server, ()),
            "health": (self._check_health, ("server",)),
            "key": (self._check_key, ("server",)),
            "engine": (self._check_engine, ("server",)),
            "model": (self._check_model, ("key",)),
            "chat": (self._check_chat, ("model",)),
            "logprobs": (self._check_logprobs, ("chat",)),
            "top_logprobs": (self._check_top_logprobs, ("logprobs",)),
            "tool calls": (self._check_tool_calls, ("chat",)),
            "logprobs of calls": (self._check_call_logprobs, ("logprobs", "tool calls")),
            "streamed logprobs": (self._check_streamed_logprobs, ("logprobs", "tool calls")),
            "usage in streams": (self._check_stream_usage, ("chat",)),
            "call start token": (self._check_call_start, ("model",)),
            "call ban": (self._check_ban, ("logprobs",)),
            "forced answer": (self._check_forced, ("logprobs",)),
            "reasoning off": (self._check_reasoning_off, ("chat", "forced answer")),
            "additions": (self._check_additions, ("logprobs", "tool calls")),
            "prefix cache": (self._check_cache, ("chat",)),
        }

    # The server

    async def _check_server(self, check: str) -> Finding:
        self._models = await self._ask("GET", "/v1/models", None)
        if self._models.status in (401, 403) or isinstance(at(self._models.json, "data"), list):
            return Finding(check, OK, "it answers /v1/models")
        return Finding(
            check,
            MISSING,
            f"/v1/models: {self._models.complaint}",
            "Something answers there, but it is no OpenAI-compatible server.",
            "Correct --upstream: the address of vLLM itself, with or without /v1.",
        )

    async def _check_health(self, check: str) -> Finding:
        answer = await self._ask("GET", "/health", None)
        if answer.status == 200:
            return Finding(check, OK, "it answers /health")
        meaning = "The governor's own /readyz asks for it, and will call this upstream not ready."
        if shows_health(answer.status):
            meaning = "It has no health check: it counts as ready as long as it answers at all."
        return Finding(check, WARN, f"/health: {answer.complaint}", meaning)

    async def _check_key(self, check: str) -> Finding:
        if self._models.status in (401, 403):
            fix = "Give the right key: --api-key, or GOVERNOR_UPSTREAM__API_KEY as `governor serve` reads it."
            return Finding(check, MISSING, self._models.complaint, "The server wants another key.", fix)
        return Finding(check, OK, "accepted" if self._key else "none given, none needed")

    async def _check_engine(self, check: str) -> Finding:
        version = at((await self._ask("GET", "/version", None)).json, "version")
        if isinstance(version, str):
            return Finding(check, OK, f"vLLM {excerpt(version)}")
        meaning = "It is another server, or a gateway hides vLLM; fields that only vLLM knows may be ignored."
        return Finding(check, WARN, "it does not tell a version of vLLM", meaning)

    async def _check_model(self, check: str) -> Finding:
        served = {
            name: one for one in at(self._models.json, "data") or () if isinstance(name := at(one, "id"), str)
        }
        names = ", ".join(map(excerpt, served)) or "none"
        self._model = self._model or next(iter(served), "")
        if self._model not in served:
            seen = f"{self._model or 'no model'} is not among the served: {names}"
            return Finding(check, MISSING, seen, fix="Name one of the served models with --model.")
        length = at(served[self._model], "max_model_len")
        suffix = f", {length} tokens of context" if isinstance(length, int) else ""
        return Finding(check, OK, f"{excerpt(self._model)}{suffix}")

    async def _check_chat(self, check: str) -> Finding:
        answer = await self._chat(self._plain(max_tokens=8))
        turn = self._whole(answer)
        if turn is not None and turn.finish_reason is not None:
            return Finding(check, OK, f"answers in {answer.seconds:.1f} s")
        meaning = "A plain chat request fails, so agents cannot use this server either."
        fix = "Look at the server's log. A model without a chat template needs vLLM's --chat-template."
        return Finding(check, MISSING, answer.complaint, meaning, fix)

    # Logprobs

    async def _check_logprobs(self, check: str) -> Finding:
        answer = await self._chat(self._plain(max_tokens=8, logprobs=True, top_logprobs=1))
        turn = self._whole(answer)
        if turn is not None and turn.measured:
            self._first_token = turn.tokens[0].text
            return Finding(check, OK, f"of all {len(turn.tokens)} tokens of an answer")
        seen = answer.complaint if answer.refused or turn is None else "the answer has none"
        if turn is not None and turn.malformed_logprobs:
            seen = "they are not of the documented shape"
        fix = "Use vLLM, which sends them; a gateway before it must hand on `logprobs` and `top_logprobs`."
        if answer.refused:
            self._takes_logprobs = False
            fix = f"Start vLLM with --max-logprobs {self._probe.top_logprobs}, where it is less. {fix}"
        return Finding(check, MISSING, seen, "Without them no entropy can be measured.", fix)

    async def _check_top_logprobs(self, check: str) -> Finding:
        wanted = self._probe.top_logprobs
        answer = await self._with_top(wanted)
        if not answer.refused:
            entries = at(answer.json, "choices", 0, "logprobs", "content", 0, "top_logprobs")
            got = len(entries) if isinstance(entries, list) else 0
            if got >= wanted:
                return Finding(check, OK, f"{wanted} for each token")
            meaning = "The bounds on the entropy are wider than they could be."
            return Finding(check, WARN, f"{wanted} asked, {got} came", meaning)
        allowed = await self._most_allowed(wanted)
        self._probe = replace(self._probe, top_logprobs=allowed)
        return Finding(
            check,
            MISSING,
            f"{wanted} refused, at most {allowed} accepted ({answer.complaint})",
            "The governor's requests are refused and sent again without logprobs, so nothing is measured.",
            f"Start vLLM with --max-logprobs {wanted}, or set governance.top_logprobs: {allowed}.",
        )

    async def _most_allowed(self, refused: int) -> int:
        """The largest accepted number below one that is refused; 1 is known to be accepted."""
        accepted = 1
        while refused - accepted > 1:
            middle = (accepted + refused) // 2
            if (await self._with_top(middle)).refused:
                refused = middle
            else:
                accepted = middle
        return accepted

    async def _with_top(self, top: int) -> Answer:
        return await self._chat(self._plain(max_tokens=1, logprobs=True, top_logprobs=top))

    # Tool calls

    async def _check_tool_calls(self, check: str) -> Finding:
        answer = await self._chat(self._agents())
        turn = self._whole(answer)
        parser = parser_of(turn.content) if turn else None
        name = parser.name if parser else "hermes"
        fix = f"Start vLLM with --enable-auto-tool-choice --tool-call-parser {name}"
        fix += " (hermes is for Qwen; each family of models has its own)."
        if turn is None:
            meaning = "Requests with tools fail, so there are no calls to govern."
            return Finding(check, MISSING, answer.complaint, meaning, fix)
        if turn.calls:
            self._free = turn
            return Finding(check, OK, "read as tool_calls: " + excerpt(str(turn.calls[0].signature)))
        if self._garbled(turn.content):
            self._free = turn
            return Finding(
                check,
                WARN,
                f"the model wrote a call that is no JSON: {excerpt(turn.content)}",
                "No parser can read it, which says nothing about the server.",
                self._another_sample,
            )
        if reads_as_call(turn.content, tool_names(self._agents().get("tools") or ()), self._markup):
            seen = f"the call stands in the text: {excerpt(turn.content)}"
            return Finding(check, MISSING, seen, "No tool parser reads the calls of this model.", fix)
        self._free = turn
        cut = f"it was still writing after {CALL_TOKENS} tokens" if turn.finish_reason == "length" else ""
        return Finding(
            check,
            WARN,
            f"not seen: {cut or 'the model answered instead: ' + excerpt(turn.content)}",
            "That says nothing about the server. Try a request in which this model does call a tool.",
            self._another_sample,
        )

    @property
    def _another_sample(self) -> str:
        """What to try where the model does not call a tool, or not well."""
        if self._sample is SAMPLE:
            return "Give a chat request of your agent with --tools FILE (JSON with `messages` and `tools`)."
        return (
            "The request of --tools did not make this model call a tool: give one of a conversation in which "
            "it does, with its `messages`, or try another model."
        )

    def _garbled(self, text: str) -> bool:
        """Whether the text holds a call between the configured marks whose body is no JSON."""
        opening, closing = self._markup.call
        if not opening or opening not in text:
            return False
        body = text.partition(opening)[2]
        body = body.partition(closing)[0] if closing else body
        try:
            json.loads(body)
        except ValueError:
            return body.lstrip().startswith("{")
        return False

    async def _check_call_logprobs(self, check: str) -> Finding:
        if self._free is None or not self._free.calls:
            return Finding(check, SKIPPED, "no call was seen")
        return self._covered(check, self._free)

    async def _check_streamed_logprobs(self, check: str) -> Finding:
        answer = await self._chat({**self._agents(), "stream": True})
        turn = self._streamed(answer)
        if turn is None or (not turn.calls and answer.refused):
            meaning = "Agents that stream cannot use this server."
            return Finding(check, MISSING, answer.complaint, meaning, "Look at the server's log.")
        if not turn.calls:
            return Finding(check, SKIPPED, "no call was seen in the stream")
        return self._covered(check, turn)

    def _covered(self, check: str, turn: Turn) -> Finding:
        """Whether the tokens of the turn's call came with logprobs: the tool's name stands in them."""
        text = "".join(token.text for token in turn.tokens)
        if turn.malformed_logprobs or turn.calls[0].name not in text:
            return Finding(
                check,
                MISSING,
                f"{len(turn.tokens)} tokens came, the call is not in them",
                "The server leaves out the tokens that its tool parser takes; calls cannot be measured.",
                "Use vLLM 0.32 or later, where those tokens come with their logprobs.",
            )
        if self._markup.call[0] and self._markup.call[0] not in text:
            return Finding(
                check,
                WARN,
                f"the call does not begin with {self._markup.call[0]}: {excerpt(text)}",
                "The governor takes the call for text, and bans the wrong token.",
                "Set markup.call to the texts that open and close a call of this model.",
            )
        return Finding(check, OK, f"of all {len(turn.tokens)} tokens, the call's too")

    async def _check_stream_usage(self, check: str) -> Finding:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._chat(self._plain(max_tokens=2, **options))
        counts = [at(chunk, "usage", "completion_tokens") for chunk in answer.chunks]
        if any(isinstance(count, int) for count in counts):
            return Finding(check, OK, "comes with stream_options.include_usage")
        seen = answer.complaint if answer.refused else "the stream has none"
        return Finding(check, WARN, seen, "What streamed turns cost cannot be counted.")

    # The probe

    async def _check_call_start(self, check: str) -> Finding:
        marker = self._probe.call_start
        body = {"model": self._model, "prompt": marker, "add_special_tokens": False}
        answer = await self._ask("POST", "/tokenize", body)
        ids = at(answer.json, "tokens")
        if answer.status != 200 or not isinstance(ids, list) or not ids:
            meaning = "The call is then banned by its text, with vLLM's `bad_words`."
            return Finding(check, WARN, f"/tokenize: {answer.complaint}", meaning)
        if len(ids) == 1 and type(ids[0]) is int:
            self._probe = replace(self._probe, call_start_id=ids[0])
            return Finding(check, OK, f"{marker} is the token {ids[0]}")
        return Finding(
            check,
            WARN,
            f"{marker} is {len(ids)} tokens",
            "It is no token of this model's; the call is banned by its text, which is less sure.",
            "Set markup.call to the texts that open and close a call in this model's chat template.",
        )

    async def _check_ban(self, check: str) -> Finding:
        """A ban shows only in a model that wants to call. So the same bias is tried the other way round: it
        must bring the token. Without an id, the first token of a plain answer is banned."""
        pushed = self._probe.call_start_id is not None
        if pushed:
            how, banned = f"logit_bias on the token {self._probe.call_start_id}", self._probe.call_start
            answer = await self._first(logit_bias={str(self._probe.call_start_id): 100})
        else:
            how, banned = "bad_words", self._first_token
            if not banned.strip():
                return Finding(check, WARN, "not proven: the model's first token is blank")
            answer = await self._first(bad_words=[banned])
        turn = self._whole(answer)
        if turn is None or not turn.tokens:
            seen = f"{how}: {answer.complaint if answer.refused else 'the answer has no tokens'}"
        elif (turn.tokens[0].text.strip() == banned.strip()) is pushed:
            return Finding(check, OK, f"{how} is honoured")
        else:
            seen = f"{how} is ignored"
        return Finding(
            check,
            MISSING,
            seen,
            "Nothing keeps the model from calling a tool where an answer is asked for.",
            BAN_FIX,
        )

    async def _first(self, **fields: Any) -> Answer:
        return await self._chat(self._plain(max_tokens=1, logprobs=True, top_logprobs=1, **fields))

    async def _check_forced(self, check: str) -> Finding:
        answer = await self._chat(probe_request(self._request(), self._probe))
        self._forced = self._whole(answer)
        if self._forced is None or not isinstance(answer.json, Mapping):
            meaning = "The request of the probe is refused."
            return Finding(check, MISSING, answer.complaint, meaning, "Look at the server's log.")
        try:
            tools = tool_names(self._request().get("tools") or ())
            forced = probe_answer(answer.json, self._vocab_size, self._markup, tools)
        except ProbeFailed as failure:
            return self._no_answer(check, failure, self._forced)
        if forced.finished:
            return Finding(check, OK, figures(forced))
        return Finding(
            check,
            WARN,
            figures(forced),
            "A forced answer that does not end withholds nothing. With questions of your own it may end.",
            "Set probe.max_tokens to more, if the answers of your agent are longer.",
        )

    def _no_answer(self, check: str, failure: ProbeFailed, turn: Turn) -> Finding:
        marker = self._markup.call[0]
        text = turn.content or "".join(token.text for token in turn.tokens)
        if failure.reason == "call" and (turn.calls or (marker and marker in text)):
            meaning = "The model called a tool although the call was banned."
            fix = BAN_FIX
        elif failure.reason == "call":
            meaning = "The model wrote the call as text, without its marker, as small models do."
            fix = "Use --policy rules with this model, or one that answers when told to."
        elif failure.reason == "empty":
            meaning = "No answer came: nothing, or only reasoning that did not end."
            fix = "Set probe.chat_template_kwargs to what turns this model's reasoning off."
        else:
            meaning = "The answer comes without logprobs that can be read."
            fix = "Use vLLM, which sends them; a gateway before it must hand on `logprobs`."
        return Finding(check, MISSING, f"{failure}: {excerpt(text)}", meaning, fix)

    async def _check_reasoning_off(self, check: str) -> Finding:
        assert self._forced is not None
        sent = excerpt(json.dumps(dict(self._probe.chat_template_kwargs)))
        if self._reasoned(self._forced):
            return Finding(
                check,
                WARN,
                f"the forced answer reasons in spite of {sent}",
                "The probe is slow, and the answer may not fit into its tokens.",
                "Set probe.chat_template_kwargs to what turns this model's reasoning off.",
            )
        free = self._free
        if free is not None and self._markup.reasoning[1] and self._markup.reasoning[1] in free.content:
            return Finding(
                check,
                WARN,
                "the reasoning stands in the text",
                "No reasoning parser reads it; agents see it as part of the answer.",
                "Start vLLM with --reasoning-parser (qwen3, deepseek_r1, ...: each family has its own).",
            )
        if free is not None and self._reasoned(free):
            return Finding(check, OK, f"honoured: {sent}")
        return Finding(check, OK, "the model does not reason here, forced or not")

    def _reasoned(self, turn: Turn) -> bool:
        opening, closing = self._markup.reasoning
        marked = [mark for mark in (closing, opening) if mark and mark in turn.content]
        thought = turn.content.partition(closing)[0] if closing else turn.content
        inside = thought.replace(opening, "") if opening else thought
        return bool(turn.reasoning.strip() or (marked and inside.strip()))

    # What the proxy adds

    async def _check_additions(self, check: str) -> Finding:
        """An agent's request with what the proxy makes of it, and what it sends in the place of withheld
        calls: each against the agent's own, since a server may refuse them in this combination only."""
        plain = {**self._request(), "temperature": 0, "max_tokens": 8}
        if self._whole(await self._chat(plain)) is None:
            return Finding(check, SKIPPED, "the agent's own request is refused")
        refused: dict[str, str] = {}
        for name, body in self._added_requests(plain).items():
            for streamed in (False, True):
                answer = await self._chat({**body, "stream": streamed})
                if (self._streamed(answer) if streamed else self._whole(answer)) is None:
                    refused.setdefault(name, answer.complaint)
        if not refused:
            return Finding(check, OK, "the agent's request is taken with all that is added to it")
        return Finding(
            check,
            MISSING if "request" in refused else WARN,
            "refused: " + "; ".join(f"{name} ({complaint})" for name, complaint in refused.items()),
            "The agent's own request counts then, and its calls pass; the rest is left out for a while.",
            " ".join(ADDITION_FIXES[name] for name in refused),
        )

    def _added_requests(self, plain: Json) -> Mapping[str, Json]:
        measured = ClientView.of(plain, self._probe.top_logprobs).request
        name = tool_names(self._sample["tools"])[0]
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}
        notice = {"role": "tool", "tool_call_id": "call_1", "content": NOTICE_REPEATED}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {
            "request": measured(plain),
            "answer": measured(without_calls(plain, self._probe)),
            "continuation": measured({**plain, "messages": [*plain["messages"], said, notice]}),
        }

    # The prefix cache

    async def _check_cache(self, check: str) -> Finding:
        """An agent's request, then the probe of it: the probe must find the prompt in the cache."""
        text = f"{self._nonce} {CACHE_TEXT}".strip()
        body = {**self._request(), "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        first = await self._chat(body)
        before = await self._cache_hits()
        second = await self._chat(probe_request(body, replace(self._probe, max_tokens=1)))
        for answer in (first, second):
            if answer.refused:
                return Finding(check, SKIPPED, answer.complaint)
        after = await self._cache_hits()
        prompt = at(second.json, "usage", "prompt_tokens")
        cached = at(second.json, "usage", "prompt_tokens_details", "cached_tokens")
        if isinstance(prompt, int) and isinstance(cached, int):
            return _cache_finding(check, cached, prompt, "usage")
        if isinstance(prompt, int) and before is not None and after is not None:
            return _cache_finding(check, int(after - before), prompt, "/metrics, other clients' included")
        likely = second.seconds < FASTER * first.seconds
        return Finding(
            check,
            WARN,
            f"uncertain: first {first.seconds:.2f} s, then {second.seconds:.2f} s; "
            + ("it looks cached" if likely else "it does not look cached"),
            "Without the cache a probe costs as much as the whole prompt.",
            "Start vLLM with --enable-prompt-tokens-details, and look again.",
        )

    async def _cache_hits(self) -> float | None:
        """vLLM's own count of prompt tokens that came from the cache."""
        counts = CACHE_HITS.findall((await self._ask("GET", "/metrics", None)).body)
        try:
            hits = sum(map(float, counts))
        except ValueError:
            return None
        return hits if counts and isfinite(hits) else None

    # Requests and answers

    def _request(self) -> dict[str, Any]:
        return {**self._sample, "model": self._model}

    def _agents(self) -> dict[str, Any]:
        """What the proxy makes of an agent's request."""
        limits = {"max_tokens": CALL_TOKENS, "temperature": 0}
        measured = {"logprobs": True, "top_logprobs": self._probe.top_logprobs}
        added = measured if self._takes_logprobs else {}
        return {**self._request(), "tool_choice": "auto", **limits, **added}

    def _plain(self, **fields: Any) -> dict[str, Any]:
        """A request without tools."""
        messages = [{"role": "user", "content": "Say hello."}]
        return {"model": self._model, "messages": messages, "temperature": 0, **fields}

    async def _chat(self, body: Json) -> Answer:
        return await self._ask("POST", CHAT, body)

    def _whole(self, answer: Answer) -> Turn | None:
        """The turn of a whole response; None for an error or a body that cannot be read."""
        usable = answer.status == 200 and isinstance(at(answer.json, "choices", 0, "message"), Mapping)
        return self._read([answer.json], Turn.add_response) if usable else None

    def _streamed(self, answer: Answer) -> Turn | None:
        """The turn of a streamed response; None for one without choices or one that cannot be read."""
        with_choice = any(at(chunk, "choices", 0, "delta") is not None for chunk in answer.chunks)
        return self._read(answer.chunks, Turn.add_chunk) if with_choice else None

    def _read(self, bodies: list[Any], add: Callable[[Turn, Json], None]) -> Turn | None:
        turn = Turn(self._vocab_size, self._markup)
        try:
            for body in bodies:
                add(turn, body)
            return None if turn.malformed or turn.spans() is None else turn
        except (AttributeError, TypeError, KeyError, ValueError, IndexError, GovernorError):
            # The proxy fails open on the same bodies.
            return None


def figures(answer: ProbeAnswer) -> str:
    """The forced answer in one line."""
    end = "ended" if answer.finished else "not ended"
    return (
        f'"{excerpt(answer.text)}": {answer.tokens} tokens, {end}, least margin {answer.least_margin:.2f}, '
        f"largest entropy {answer.max_entropy:.2f} nats"
    )


def _cache_finding(check: str, cached: int, prompt: int, source: str) -> Finding:
    seen = f"{cached} of {prompt} prompt tokens from the cache ({source})"
    if 2 * cached >= prompt:
        return Finding(check, OK, seen)
    return Finding(
        check,
        WARN,
        seen,
        "A probe computes the whole prompt again, which costs time and load.",
        "Start vLLM with --enable-prefix-caching, and without --exclude-tools-when-tool-choice-none.",
    )
