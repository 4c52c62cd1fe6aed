"""A turn: one assistant message with the tokens it was generated from, whole or in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from governor.calls import CallForm, ToolCall
from governor.errors import CallsMalformed, LogprobsMalformed, ProbeFailed
from governor.markup import answer_part, reads_as_call
from governor.probe import ProbeAnswer, answer_of
from governor.request import REASONING_KEYS, Json
from governor.spans import Markup, Span, SpanKind, segment, spans
from governor.tokens import Token, Unread, tokens_from_logprobs

MOST_UNREAD = 64
"""Pieces of logprobs that are kept unread, beyond which the oldest is read for each that comes: all of them
at once would hold up other requests, and unread they take four times the memory."""

WHOLE: Final = frozenset({"stop", "tool_calls", "function_call"})
"""Upstream's words for a message that the model ended itself. Whatever else it says (`length`, `abort`,
`content_filter`, `repetition`, a word of a later version), something may be missing."""


@dataclass(slots=True)
class _CallParts:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    form: CallForm = CallForm.OTHER

    def call(self, index: int) -> ToolCall:
        return ToolCall(self.id, index, self.name, "".join(self.arguments), self.form)


class Turn:
    """What the model generated, collected from stream chunks or from a response. Its tokens are read when
    somebody wants them, which may be after the client has its message.

    Both ways give the same turn for the same generation: the spans come from the tokens' texts alone.

    `malformed`: a piece that should be text is something else, or a place of a call is no number. What is no
    text is not taken in, so that the rest can be read; what it stood for nobody knows.
    """

    def __init__(self, vocab_size: int, markup: Markup) -> None:
        self._vocab_size = vocab_size
        self._markup = markup
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _CallParts] = {}
        self._legacy_call = _CallParts()
        self.places: Sequence[int] = ()
        """The places in the message of the calls that the last chunk had pieces of, one for each piece."""
        self.reasoning_key = REASONING_KEYS[0]
        self.has_text = False
        self.malformed = False
        self._tokens: list[Token] = []
        self._unread: deque[Json | Unread] = deque()
        self.drawn = 0
        """Tokens so far, but for those in logprobs that came as `Unread`."""
        self._malformed_logprobs = False
        self._shown_unmeasured = False
        self.finish_reason: str | None = None
        self.usage: Json = {}
        self._spans: tuple[Span, ...] | None = None

    def add_chunk(self, chunk: Json) -> None:
        """Take in one chunk of the stream. Raises `CallsMalformed`."""
        self.places = ()
        if choice := first_choice(chunk):
            delta = choice.get("delta") or {}
            if calls := delta.get("tool_calls"):
                self.places = [self._add_piece(call) for call in calls]
            self._add(delta, choice)
        self.usage = chunk.get("usage") or self.usage

    def add_response(self, response: Json) -> None:
        """Take in a whole response. Its calls are those of the list, whatever index they may carry."""
        if choice := first_choice(response):
            message = choice.get("message") or {}
            for place, call in enumerate(message.get("tool_calls") or ()):
                self._add_call(place, call)
            self._add(message, choice)
        self.usage = response.get("usage") or {}

    def _add(self, message: Json, choice: Json) -> None:
        self._spans = None
        if (legacy := message.get("function_call")) and isinstance(legacy, Mapping):
            self._legacy_call.name += self._text(legacy.get("name"))
            self._legacy_call.arguments.append(self._text(legacy.get("arguments")))
        if content := message.get("content"):
            self._content.append(self._text(content))
            self.has_text = self.has_text or bool(self._content[-1].strip())
        for key in REASONING_KEYS:
            if reasoning := message.get(key):
                self.reasoning_key = key
                self._reasoning.append(self._text(reasoning))
                break
        if logprobs := choice.get("logprobs"):
            self._add_tokens(logprobs)
        elif content or reasoning or message.get("tool_calls"):
            self._shown_unmeasured = True
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _add_piece(self, delta: Json) -> int:
        place = self._place(delta)
        self._add_call(place, delta)
        return place

    def _place(self, delta: Json) -> int:
        """Where in the message the call is that `delta` is a piece of: where its index says. Without one, a
        piece is of the call that has its id; a name where the last call has one begins the next call;
        anything else goes on with the last one."""
        index = delta.get("index")
        if isinstance(index, int):
            return index
        if isinstance(index, str) and index.isdecimal():
            return int(index)
        self.malformed = self.malformed or index is not None
        id, name = delta.get("id"), _body(delta)[1].get("name")
        for place, parts in self._calls.items():
            if id and parts.id == id:
                return place
        last = max(self._calls, default=0)
        return last + 1 if name and self.tool_name(last) else last

    def _add_call(self, place: int, delta: Json) -> None:
        """Later pieces of a call carry no id, an empty one, or any other: what begins a call is its name. Two
        names at one place, or a name with another id, are two calls that nobody can tell apart: an effectful
        one might be taken for a part of another."""
        parts = self._calls.setdefault(place, _CallParts())
        form, body = _body(delta)
        id, name = self._text(delta.get("id")), self._text(body.get("name"))
        if name and ((parts.name and name != parts.name) or (id and parts.id and id != parts.id)):
            raise CallsMalformed("calls", "two calls at one place")
        parts.id, parts.name = parts.id or id, parts.name or name
        parts.form = form if body else parts.form
        parts.arguments.append(self._text(body.get("input" if form is CallForm.CUSTOM else "arguments")))

    def _text(self, piece: object) -> str:
        """A piece of upstream's as text, "" for what is none."""
        if isinstance(piece, str):
            return piece
        self.malformed = self.malformed or bool(piece)
        return ""

    def _add_tokens(self, logprobs: Json | Unread) -> None:
        if not isinstance(logprobs, Unread):
            content = logprobs.get("content")
            if not content:
                return
            self.drawn += len(content) if isinstance(content, list) else 0
        self._unread.append(logprobs)
        if len(self._unread) > MOST_UNREAD:
            self._measure(self._unread.popleft())

    @property
    def tokens(self) -> Sequence[Token]:
        """Those whose logprobs came, and could be read."""
        self._read()
        return self._tokens

    def _read(self) -> None:
        while self._unread:
            self._measure(self._unread.popleft())

    def _measure(self, logprobs: Json | Unread) -> None:
        try:
            self._tokens += tokens_from_logprobs(_entries(logprobs), self._vocab_size)
        except LogprobsMalformed:
            self._malformed_logprobs = True

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def content_pieces(self) -> int:
        """How many pieces of content came so far."""
        return len(self._content)

    @property
    def reasoning_pieces(self) -> int:
        """How many pieces of reasoning came so far."""
        return len(self._reasoning)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls; the one of the legacy `function_call`, which was not asked for, comes last and is of a
        form that nobody knows."""
        calls = tuple(parts.call(index) for index, parts in sorted(self._calls.items()))
        if not self._legacy_call.arguments:
            return calls
        return (*calls, self._legacy_call.call(calls[-1].index + 1 if calls else 0))

    @property
    def is_whole(self) -> bool:
        """Whether the model ended the message itself, and no call lacks a part of its arguments."""
        return self.finish_reason in WHOLE and all(call.is_whole for call in self.calls)

    def tool_name(self, index: int) -> str:
        """The tool of the call at `index`, as far as it is known; "" before that."""
        return self._calls[index].name if index in self._calls else ""

    @property
    def malformed_logprobs(self) -> bool:
        """Whether some of the logprobs that came could not be read."""
        self._read()
        return self._malformed_logprobs

    @property
    def measured(self) -> bool:
        """Whether upstream sent the tokens' logprobs."""
        return bool(self.tokens) and not self._malformed_logprobs

    @property
    def has_gaps(self) -> bool:
        """Whether upstream left tokens out of the logprobs, as far as they were read, so that the spans of
        the turn are not those of all its tokens. Servers drop those of the reasoning, or of the markers that
        a parser swallows; without the marker a call's arguments would look like free text."""
        if self._shown_unmeasured or self._malformed_logprobs or not (self._unread or self._tokens):
            return True
        return bool(self._calls) and all(span.kind is not SpanKind.CALL for span in self.spans())

    def spans(self) -> tuple[Span, ...]:
        """The spans of the turn.

        A chat template may open the reasoning in the prompt, so that it is generated without its opening
        marker.
        """
        if self._spans is None:
            texts = [token.text for token in self.tokens]
            opening = self._markup.reasoning[0]
            in_prompt = bool(self._reasoning) and opening not in "".join(texts)
            self._spans = spans(texts, self._markup, starts_in_reasoning=in_prompt)
        return self._spans

    def first_call_token(self) -> int:
        """Where the marker stands that opens the first call; the number of tokens if there is none."""
        found = self.spans()
        for place, span in enumerate(found):
            if span.kind is SpanKind.CALL:
                return found[max(place - 1, 0)].start
        return len(self.tokens)

    def is_answer(self, tools: Collection[str]) -> bool:
        """Whether there is text, and it is neither a call written out nor a thought, from a model that was
        offered `tools`."""
        answer = answer_part(self.content, self._markup)
        if answer is None or not answer.strip():
            return False
        return not reads_as_call(answer, tools, self._markup)

    def as_answer(self, tools: Collection[str]) -> ProbeAnswer | None:
        """The text of the turn as an answer that nobody forced; None if it is none."""
        try:
            return answer_of(
                self.content,
                segment(self.tokens, self.spans(), {SpanKind.CONTENT}),
                finished=self.finish_reason == "stop",
                tools=tools,
                markup=self._markup,
            )
        except ProbeFailed:
            return None


def _body(delta: Json) -> tuple[CallForm, Json]:
    """The form of a piece of a call, and what it says of the call; nothing in a form that nobody knows."""
    form = CallForm.CUSTOM if delta.get("custom") else CallForm.FUNCTION
    return form, delta.get(form.value) or {}


def _entries(logprobs: Json | Unread) -> Sequence[Json]:
    """The logprobs of the tokens. Raises `LogprobsMalformed`."""
    try:
        found = logprobs.parse(logprobs.raw) if isinstance(logprobs, Unread) else logprobs
        content = found.get("content") or []
    except (ValueError, AttributeError) as error:
        raise LogprobsMalformed("malformed", f"{type(error).__name__}: {error}") from error
    if not isinstance(content, list):
        raise LogprobsMalformed("malformed", "content is no list")
    return content


def first_choice(body: Json) -> Mapping[str, Any] | None:
    """The only choice of a chunk or a response; None if it has none."""
    choices = body.get("choices")
    return choices[0] if isinstance(choices, list) and choices else None
