"""Pruning: a short stub in the place of a result that is not worth its tokens, in what the model sees.

The client's own history is never changed. It sends the full texts again with each request, so each request
is pruned anew, and a result that was stubbed once must be stubbed again: otherwise the same history gives
another prompt and the engine's prefix cache is lost. The caller therefore keeps `Pruning.stubs` (it belongs
into the calls' records) and hands it in with the next request.

Only results of read-only tools are ever pruned, and of these no error, nothing but text, nothing that is not
longer than its stub, and nothing whose repetition could give another answer (of volatile tools, and of work
that goes on). A result and its call stay a pair: of the tool message, the content alone changes.
Whatever cannot be read or told apart stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from governor.calls import CallSignature, ToolCatalog, ToolEffect
from governor.conversation import ExecutedCall, executed_calls
from governor.results import Outcome

PrunePolicy = Literal["none", "low_value", "age"]

Count = Callable[[str], int]
"""How many tokens a text has."""


def estimated_tokens(text: str) -> int:
    """Four characters to a token, rounded up: close enough to weigh one text against another."""
    return -(-len(text) // 4)


class StubReason(StrEnum):
    """Why a stub stands where a result stood."""

    LOW_VALUE = "low_value"
    """The forced answer was the same with it and without it, and no more certain."""
    DUPLICATE = "duplicate"
    """The same text stands above."""
    AGE = "age"
    """Enough newer results came after it."""


_AGAIN: Final = "Repeat the call with the same arguments for the full text."

_STUBS: Final = {
    StubReason.LOW_VALUE: f"[Withheld: {{}} characters that did not change the answer. {_AGAIN}]",
    # No offer here: the text can be read above, and for the rules a repeat of the call is a repeat.
    StubReason.DUPLICATE: "[Withheld: {} characters, the same text that already stands above.]",
    StubReason.AGE: f"[Withheld: {{}} characters of an old result. {_AGAIN}]",
}

_READ_STUB: Final = {
    reason: re.compile(re.escape(text).replace(r"\{\}", "([0-9]{1,15})")) for reason, text in _STUBS.items()
}


def stub_for(reason: StubReason, characters: int) -> str:
    """The line that the model reads in the place of a result of so many characters.

    >>> stub_for(StubReason.DUPLICATE, 5200)
    '[Withheld: 5200 characters, the same text that already stands above.]'
    """
    return _STUBS[reason].format(characters)


def is_stub(text: str) -> bool:
    """Whether a tool result is one of our stubs."""
    return _read_stub(text) is not None


def _read_stub(text: str) -> tuple[StubReason, int] | None:
    """The reason and the characters of the stub `text`."""
    for reason, pattern in _READ_STUB.items():
        if found := pattern.fullmatch(text.strip()):
            return reason, int(found[1])
    return None


def _known_stub(text: str, made: StubReason | None) -> tuple[StubReason, int] | None:
    """What `text` says as the stub that was `made` for this reason; None if it is not that stub."""
    found = _read_stub(text) if made is not None else None
    return found if found and found[0] is made else None


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """What is pruned, and when it pays.

    `policy`: "none" prunes nothing, not even what was pruned before. "low_value" prunes the results labelled
    so, and fresh ones whose text stands above. "age" is the baseline to compare with: each result older than
    the last `keep_last` is pruned, whatever it said and whatever it costs.

    `min_tokens`: shorter results are left alone. `batch_tokens`: older results of low value are pruned only
    when that frees so many tokens. `expected_turns`: for how many more requests the freed tokens are
    thought to be saved. A larger one prunes earlier, and loses the prefix cache more often.
    """

    policy: PrunePolicy = "none"
    min_tokens: int = 64
    batch_tokens: int = 256
    keep_last: int = 5
    expected_turns: float = 3.0

    def __post_init__(self) -> None:
        for name in ("min_tokens", "batch_tokens", "keep_last", "expected_turns"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")


@dataclass(frozen=True, slots=True)
class Pruning:
    """What the model gets to see of a request's messages.

    `messages`: as many as the client sent, the same objects where nothing changed. `stubs`: the results
    that are stubs in it, by call id; `new`: those of them that were none before. `saved_tokens`: by how much
    the prompt is shorter than the client's. `recomputed_tokens`: how much of it stood in the prefix cache
    before the new stubs, and has to be computed once more; 0 where only fresh results were pruned.
    `missing`: the signatures whose newest result the model cannot read any more. The stub told it to repeat
    such a call, so that a repeat of it is none for the rules.
    """

    messages: Sequence[Any]
    stubs: Mapping[str, StubReason] = field(default_factory=dict)
    new: frozenset[str] = frozenset()
    saved_tokens: int = 0
    recomputed_tokens: int = 0
    missing: frozenset[CallSignature] = frozenset()


def prune(
    messages: Sequence[Any],
    catalog: ToolCatalog,
    settings: PruneSettings,
    *,
    stubs: Mapping[str, StubReason],
    low_value: AbstractSet[str],
    count: Count = estimated_tokens,
) -> Pruning:
    """The request's `messages` with stubs for results that are not worth their tokens.

    `catalog` is the one with the request's tools. `stubs` are those of the earlier requests of this
    conversation, by call id; they are stubs again. `low_value` are the ids of the calls whose result made
    no difference. Token counts are those of `count` over contents and calls, without the chat template.

    - A *fresh* result, one behind the last assistant message, is pruned at once: nothing of it is cached.
      It needs the label, or the same text in full above it; what stands above is then kept.
    - *Older* results with the label wait until it pays to lose the cache behind them; see `_paying`.
    - A result that came after a stub with the same signature was asked for because of the stub. It is kept,
      and only ever pruned by age.
    - A stub that points at the same text above is taken back when the client has cut that text out.
    - Where two calls or two results share an id, only the first can have a stub, and gets no new one.

    Linear in the size of the messages.
    """
    if settings.policy == "none":
        return Pruning(messages)
    plan = _Plan(_read(messages, catalog, stubs), settings, stubs, low_value, count)
    older = plan.waiting()
    reason = StubReason.AGE
    if settings.policy == "low_value":
        older, reason = _paying(older, plan, settings), StubReason.LOW_VALUE
    for result in older:
        plan.stub(result, reason)
    recomputed = sum(plan.tokens(place) for place in range(older[0].place, plan.fresh_from)) if older else 0
    return Pruning(
        messages=plan.messages(),
        stubs=plan.stubs,
        new=frozenset(plan.stubs) - frozenset(stubs),
        saved_tokens=plan.saved_tokens(),
        recomputed_tokens=recomputed,
        missing=plan.missing(),
    )


@dataclass(frozen=True, slots=True)
class _Result:
    """A result whose call is known. `place` and `asked` are the places of their messages.

    `prunable`: of a read-only call whose tool does not change its answers, nothing but text, no error, final,
    and the first one with its id. `stub`: the
    client sent a stub of ours, of this reason and this many characters.
    """

    place: int
    asked: int
    id: str
    text: str
    signature: CallSignature
    failed: bool
    prunable: bool
    stub: tuple[StubReason, int] | None


@dataclass(frozen=True, slots=True)
class _History:
    """`results` are in order. Messages from the place `fresh_from` on are new to the engine. `calls` are
    those that the message at a place makes. `ambiguous` ids stand for several calls or results."""

    messages: Sequence[Any]
    results: Sequence[_Result]
    fresh_from: int
    calls: Mapping[int, Sequence[ExecutedCall]]
    ambiguous: AbstractSet[str]


def _read(messages: Sequence[Any], catalog: ToolCatalog, stubs: Mapping[str, StubReason]) -> _History:
    """`stubs` are those that were made before: only in their place is a text that reads like a stub taken for
    one. A tool may write what it likes into its result."""
    proposed: dict[str, tuple[int, ExecutedCall]] = {}
    answered: set[str] = set()
    ambiguous: set[str] = set()
    results: list[_Result] = []
    calls: dict[int, Sequence[ExecutedCall]] = {}
    fresh_from = 0
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "assistant":
            fresh_from = place + 1
            calls[place] = _executed(message, catalog)
            for executed in calls[place]:
                if executed.call.id in proposed:
                    ambiguous.add(executed.call.id)
                proposed[executed.call.id] = (place, executed)
        elif role == "tool":
            identity = message.get("tool_call_id")
            if not isinstance(identity, str) or identity not in proposed:
                continue
            if identity in answered:
                ambiguous.add(identity)
            answered.add(identity)
            asked, executed = proposed[identity]
            sure = identity not in ambiguous and executed.effect is ToolEffect.READ_ONLY
            results.extend(
                _Result(
                    place=place,
                    asked=asked,
                    id=identity,
                    text=told.result,
                    signature=executed.call.signature,
                    failed=told.failed,
                    prunable=sure
                    and not told.failed
                    and told.outcome is not Outcome.UNFINISHED
                    and not catalog.is_volatile(executed.call.name)
                    and None not in _parts(message.get("content")),
                    stub=_known_stub(told.result, stubs.get(identity)),
                )
                for told in _executed(message, catalog)
            )
    return _History(messages, results, fresh_from, calls, ambiguous)


def _executed(message: Mapping[str, Any], catalog: ToolCatalog) -> Sequence[ExecutedCall]:
    """The calls that an assistant message makes, or the one result of a tool message."""
    try:
        return executed_calls((message,), catalog)
    except RecursionError:  # JSON that is nested deeper than Python writes it
        return ()


def _parts(content: object) -> Sequence[str | None]:
    """The texts of a message's content, with None for what is no text."""
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, Sequence):
        return (None,)
    texts = (part.get("text") if isinstance(part, Mapping) else None for part in content)
    return tuple(text if isinstance(text, str) else None for text in texts)


class _Plan:
    """Which results are stubs: those that are stubs again, and the fresh ones that become some, from the
    beginning; older ones are added with `stub`.

    `_pinned` are the lengths of the texts that a stub points at. A length is all that such a stub itself
    says, so a history that came with stubs in it is treated like the one that they were made from.
    """

    def __init__(
        self,
        history: _History,
        settings: PruneSettings,
        sticky: Mapping[str, StubReason],
        low_value: AbstractSet[str],
        count: Count,
    ) -> None:
        self._history = history
        self._settings = settings
        self._sticky = sticky
        self._low_value = low_value
        self._count = count
        self._stubbed: dict[int, tuple[_Result, StubReason]] = {}
        self._standing: set[str] = set()
        self._first_stub: dict[CallSignature, int] = {}
        self._pinned: set[int] = set()
        self.stubs: dict[str, StubReason] = {}
        for result in history.results:
            self._take(result)

    @property
    def fresh_from(self) -> int:
        """The place of the first message that is new to the engine."""
        return self._history.fresh_from

    def _take(self, result: _Result) -> None:
        if result.stub:
            self._note(result, *result.stub)
            if result.prunable and result.id in self._sticky:
                self.stubs[result.id] = result.stub[0]
        elif reason := self._again(result) or self._admission(result):
            self.stub(result, reason)
        else:
            self._standing.add(result.text)

    def stub(self, result: _Result, reason: StubReason) -> None:
        """Makes the result a stub."""
        self._stubbed[result.place] = (result, reason)
        self.stubs[result.id] = reason
        self._note(result, reason, len(result.text))

    def _note(self, result: _Result, reason: StubReason, characters: int) -> None:
        self._first_stub.setdefault(result.signature, result.place)
        if reason is StubReason.DUPLICATE:
            self._pinned.add(characters)

    def _again(self, result: _Result) -> StubReason | None:
        reason = self._sticky.get(result.id) if result.prunable else None
        if reason is None or self.saved(result, reason) <= 0:
            return None
        return None if reason is StubReason.DUPLICATE and result.text not in self._standing else reason

    def _admission(self, result: _Result) -> StubReason | None:
        if self._settings.policy != "low_value" or result.place < self.fresh_from:
            return None
        if self._is_due(result, StubReason.LOW_VALUE):
            return StubReason.LOW_VALUE
        if result.text in self._standing and self._is_due(result, StubReason.DUPLICATE):
            return StubReason.DUPLICATE
        return None

    def _is_due(self, result: _Result, reason: StubReason) -> bool:
        """Whether the result, none of the stubs of before, may become one for this reason."""
        if not result.prunable or self._count(result.text) < self._settings.min_tokens:
            return False
        if reason is not StubReason.AGE:
            asked_for = self._first_stub.get(result.signature, result.asked) < result.asked
            if asked_for or result.id in self._history.ambiguous:
                return False
        labelled = reason is not StubReason.LOW_VALUE or result.id in self._low_value
        return labelled and self.saved(result, reason) > 0

    def waiting(self) -> Sequence[_Result]:
        """The older results that may become stubs, in order."""
        results, reason = self._history.results, StubReason.LOW_VALUE
        if self._settings.policy == "age":
            results, reason = results[: max(0, len(results) - self._settings.keep_last)], StubReason.AGE
        return [
            result
            for result in results
            if result.place < self.fresh_from
            and result.place not in self._stubbed
            and result.stub is None
            and len(result.text) not in self._pinned
            and self._is_due(result, reason)
        ]

    def saved(self, result: _Result, reason: StubReason) -> int:
        """The tokens that a stub frees; not positive where it is as long as the result."""
        return self._count(result.text) - self._count(stub_for(reason, len(result.text)))

    def saved_tokens(self) -> int:
        """The tokens that all stubs free."""
        return sum(self.saved(result, reason) for result, reason in self._stubbed.values())

    def tokens(self, place: int) -> int:
        """The tokens of the message at a place, with the stubs so far."""
        if place in self._stubbed:
            result, reason = self._stubbed[place]
            return self._count(stub_for(reason, len(result.text)))
        message = self._history.messages[place]
        content = message.get("content") if isinstance(message, Mapping) else None
        text = "\n".join(part for part in _parts(content) if part)
        calls = (executed.call for executed in self._history.calls.get(place, ()))
        return self._count(text) + sum(self._count(call.name + call.arguments) for call in calls)

    def messages(self) -> Sequence[Any]:
        """What the model gets to see."""
        if not self._stubbed:
            return self._history.messages
        seen = list(self._history.messages)
        for place, (result, reason) in self._stubbed.items():
            seen[place] = {**seen[place], "content": stub_for(reason, len(result.text))}
        return seen

    def missing(self) -> frozenset[CallSignature]:
        """The signatures whose newest result is a stub that offers the full text."""
        missing: set[CallSignature] = set()
        for result in self._history.results:
            _, reason = self._stubbed.get(result.place, (result, result.stub and result.stub[0]))
            if reason in (StubReason.LOW_VALUE, StubReason.AGE):
                missing.add(result.signature)
            elif reason is None and not result.failed:
                missing.discard(result.signature)
        return frozenset(missing)


def _paying(older: Sequence[_Result], plan: _Plan, settings: PruneSettings) -> Sequence[_Result]:
    """Those of the `older` results that are worth the loss of the prefix cache; the others wait.

    A new stub at one place costs the cache of all that follows, so that the results that follow come along
    for nothing. What is to be chosen is the earliest place. For the candidate i,

        net(i) = turns * freed(i) - (cached(i) - freed(i))

    with freed(i) the tokens that stubs for i and all later candidates free, `turns` the requests they are
    saved for, and cached(i) the tokens from the message of i to the last assistant message: those behind it
    are computed anyway. The difference in brackets is what is computed once more. Taken is the latest i of
    the largest net(i), if that is positive, among those with freed(i) >= `batch_tokens`. Right afterwards
    nothing more pays, since net(j) of an earlier j is then at most freed(i) - cached(i).
    """
    freed = [plan.saved(result, StubReason.LOW_VALUE) for result in older]
    total = sum(freed)
    if not older or total < settings.batch_tokens:
        return ()
    best, start = 0.0, len(older)
    total = cached = 0
    behind = plan.fresh_from
    for i in range(len(older) - 1, -1, -1):
        cached += sum(plan.tokens(place) for place in range(older[i].place, behind))
        behind = older[i].place
        total += freed[i]
        net = settings.expected_turns * total - (cached - total)
        if total >= settings.batch_tokens and net > best:
            best, start = net, i
    return older[start:]
