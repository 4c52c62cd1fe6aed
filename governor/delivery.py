"""What of upstream's generations reaches the client, streamed or whole, as one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from governor.chunk import edited
from governor.generation import Generation, Purpose
from governor.hold import Held
from governor.message import Keep, composed, gap, joined
from governor.probe import ProbeAnswer
from governor.request import REASONING_KEYS, ClientView, Json
from governor.turn import first_choice

HEAD: Final = ("id", "created", "model")
"""The fields that are the same in every chunk of a message."""


class Delivery:
    """Chunks and bodies for the client, made of the `generations` that the exchange adds to. `head` are the
    fields of a stream that every chunk has, each as the first chunk said it that did: some servers begin
    with a chunk whose id is empty.

    What waits is given up only once what becomes of it is there: where a chunk is too odd to leave something
    out of it, all of them wait still, to be released as they are.
    """

    def __init__(self, view: ClientView, generations: Sequence[Generation]) -> None:
        self._view = view
        self._generations = generations
        self.head: dict[str, Any] = {}
        self._ready: list[Json] = []
        self._trailer: tuple[Json, ...] = ()

    # A stream

    @property
    def holds(self) -> bool:
        """Whether something waits for a decision."""
        return bool(self._ready or self._generations[-1].hold.waiting)

    def receive(self, chunk: Json) -> tuple[Json, ...]:
        """What the client gets now that a chunk of the last generation came, which has taken it in."""
        generation = self._generations[-1]
        first_token = generation.turn.drawn
        generation.turn.add_chunk(chunk)
        if len(self.head) < len(HEAD):
            self.head |= {key: chunk[key] for key in HEAD if key not in self.head and chunk.get(key)}
        fitted = chunk if generation.purpose is Purpose.REQUEST else self._fitted(chunk, generation)
        if fitted is None:
            return ()
        passed = generation.hold.receive(Held(fitted, first_token, generation.turn.places), generation.turn)
        if not passed:
            return ()
        generation.shown = True
        ready, self._ready = self._ready, []
        return self._seen([*ready, *(held.chunk for held in passed)])

    def set_aside(self, generation: Generation) -> None:
        """The calls of `generation` were withheld, and another one follows: keep what waits of it."""
        waiting = generation.hold.waiting
        held = [item for item in waiting if first_choice(item.chunk) is not None]
        keep = Keep.of(generation.turn, generation.withheld)
        ready = [
            chunk for item in held if _before_end(item.chunk) and (chunk := keep.chunk(item)) is not None
        ]
        generation.held, self._ready = held, ready
        if generation.purpose is Purpose.REQUEST:
            self._trailer = tuple(item.chunk for item in waiting if first_choice(item.chunk) is None)
        generation.hold.take()

    def last_chunks(self) -> tuple[Json, ...]:
        """The end of the stream."""
        last = self._generations[-1]
        keep = Keep.of(last.turn, last.withheld)
        kept = map(keep.chunk, last.hold.waiting)
        chunks = [*self._ready, *(chunk for chunk in kept if chunk is not None), *self._trailer]
        last.hold.take()
        self._ready, self._trailer = [], ()
        return self._seen(chunks)

    def released_chunks(self, before: Generation, *, shown: bool) -> tuple[Json, ...]:
        """The end of the stream where what should have taken the place of `before`'s calls failed: they go
        out after all, and what stood before them too unless some of the failed generation was `shown`."""
        self._ready = []
        chunks = [item.chunk for item in before.held]
        if shown:
            chunks = [_calls_alone(chunk) for chunk in chunks if _has_call_or_end(chunk)]
        return (*self._seen(chunks), *self._trailer)

    def answer_chunks(self, generation: Generation, probe: ProbeAnswer) -> tuple[Json, ...]:
        """The end of the stream with the forced answer in the place of `generation`'s calls."""
        keep = Keep.of(generation.turn, generation.withheld)
        before = joined([part.turn.content for part in self._generations], skip_blank=True)
        chunks: list[Json | None] = [*self._ready]
        for item in generation.hold.waiting:
            if first_choice(item.chunk) is None:
                chunks.append(item.chunk)
            elif _before_end(item.chunk):
                chunks.append(keep.chunk(item))
            else:
                chunks += _answer_chunks(item.chunk, gap(before) + probe.text, _logprobs(generation))
        generation.hold.take()
        self._ready = []
        return self._seen([*(chunk for chunk in chunks if chunk is not None), *self._trailer])

    # A whole response

    def body(self) -> Json:
        """The whole response."""
        return self._composed([self._kept_choice(part) for part in self._generations])

    def answer_body(self, generation: Generation, probe: ProbeAnswer) -> Json:
        """The whole response with the forced answer in the place of `generation`'s calls."""
        answer = {
            "message": {"content": probe.text},
            "logprobs": _logprobs(generation),
            "finish_reason": "stop",
            "stop_reason": None,
        }
        return self._composed([*(self._kept_choice(part) for part in self._generations), answer])

    def _kept_choice(self, generation: Generation) -> Json:
        choice = first_choice(generation.response or {}) or {}
        return Keep.of(generation.turn, generation.withheld).choice(choice)

    def _composed(self, choices: Sequence[Json]) -> Json:
        first = self._generations[0]
        response = first.response or {}
        if len(choices) > 1 or first.withheld:
            response = composed(response, choices)
        return self._view.response(response)

    def _fitted(self, chunk: Json, generation: Generation) -> Json | None:
        """A later generation's chunk as one of the message that the first one began; None if it adds
        nothing."""
        choice = first_choice(chunk)
        # The calls that a malformed generation should have replaced pass in its place.
        if choice is None or generation.turn.malformed:
            return None
        delta = {key: value for key, value in (choice.get("delta") or {}).items() if key != "role"}
        if "role" in (choice.get("delta") or {}) and not any(delta.values()):
            return None
        earlier = self._generations[:-1]
        if delta.get("content") and generation.turn.content_pieces == 1:
            before = joined([part.turn.content for part in earlier], skip_blank=True)
            delta["content"] = gap(before) + delta["content"]
        for key in REASONING_KEYS:
            if delta.get(key) and generation.turn.reasoning_pieces == 1:
                before = joined([part.turn.reasoning for part in earlier], skip_blank=False)
                delta[key] = gap(before) + delta[key]
        # Where usage comes with every chunk, its last word stays that of the client's own generation.
        told = self._generations[0].turn.usage
        usage: dict[str, Any] = {"usage": told} if chunk.get("usage") and told else {}
        return edited(chunk, **self.head, **usage, choices=[{**choice, "delta": delta}])

    def _seen(self, chunks: Sequence[Json]) -> tuple[Json, ...]:
        return tuple(seen for chunk in chunks if (seen := self._view.chunk(chunk)) is not None)


def _logprobs(generation: Generation) -> Json | None:
    choice: Json = first_choice(generation.probe_response or {}) or {}
    return choice.get("logprobs")


def _before_end(chunk: Json) -> bool:
    choice = first_choice(chunk)
    return choice is not None and choice.get("finish_reason") is None


def _has_call_or_end(chunk: Json) -> bool:
    choice = first_choice(chunk)
    return choice is None or bool(
        choice.get("finish_reason") or (choice.get("delta") or {}).get("tool_calls")
    )


def _calls_alone(chunk: Json) -> Json:
    """A chunk whose text the client has, without it; the end as it is."""
    choice: Json = first_choice(chunk) or {}
    if choice.get("finish_reason") is not None or not choice:
        return chunk
    return edited(chunk, choices=[{**choice, "delta": {"tool_calls": choice["delta"]["tool_calls"]}}])


def _answer_chunks(end: Json, text: str, logprobs: Json | None) -> tuple[Json, Json]:
    """The probe's text as a stream would have brought it: a chunk with the text, and the end, made from the
    end of the generation that it replaces."""
    choice: Json = first_choice(end) or {}
    spoken = {
        **{key: value for key, value in choice.items() if key != "stop_reason"},
        "delta": {"content": text},
        "logprobs": logprobs,
        "finish_reason": None,
    }
    ended = {**choice, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    # vLLM names its build in the last chunk alone.
    return edited(end, choices=[spoken], without="system_fingerprint"), edited(end, choices=[ended])
