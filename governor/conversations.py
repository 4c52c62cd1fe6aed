"""Recorded conversations: which calls are of one, in which order, and how far they went their own way.

A promise about the *first* call that a policy would withhold holds for whoever agrees on which one that is.
So certificate, fit and drift, replay, tuning and reports, the effect and the dashboard all read
conversations through this module.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf, nextafter

from governor.conversation import AnsweredCall
from governor.experiment import Arm
from governor.records import CallRecord, Key, merge, signature_digest

Calls = Sequence[CallRecord]
"""The calls of one conversation, in order."""
Sign = tuple[str, str]
"""An id, and a digest of what the call asks, with or without the question that it was made for."""


def conversations(records: Iterable[CallRecord]) -> dict[str, tuple[CallRecord, ...]]:
    """By name, in the order of the names, each with its calls in their order. The same whatever the order of
    `records`, which may hold several of one call: together they say what is known of it."""
    calls: dict[Key, CallRecord] = {}
    for record in records:
        known = calls.get(record.key)
        calls[record.key] = record if known is None else merge(known, record)
    grouped: dict[str, list[CallRecord]] = {}
    for record in calls.values():
        grouped.setdefault(record.conversation, []).append(record)
    return {name: in_order(grouped[name]) for name in sorted(grouped)}


def in_order(calls: Iterable[CallRecord]) -> tuple[CallRecord, ...]:
    """The calls of one conversation in the order in which they were proposed."""
    return tuple(sorted(calls, key=place))


def place(record: CallRecord) -> tuple[float, int, int, bool, int, str]:
    """What the calls of a conversation are ordered by: the request, what was generated for it, the place in
    the message.

    The time of a request is later than that of every call in its history, whatever the clocks say (see
    `after`). The step is not: it falls when a client shortens its history. Records of earlier versions do not
    number generations; there, a call that was withheld by a notice comes before what followed the notice.
    """
    return (
        record.created,
        record.step,
        record.generation,
        not record.noticed,
        record.index,
        record.call_id,
    )


def turn_place(record: CallRecord) -> tuple[float, int]:
    """The same for the calls of one message to the client, and another one for every other message of the
    conversation."""
    return record.created, record.step


def observed(calls: Iterable[CallRecord]) -> bool:
    """Whether the conversation was only observed: nothing was governed, so that no policy had a say in which
    of its calls have labels."""
    return all(call.arm != Arm.GOVERNED and call.passed for call in calls)


def after(now: float, known: Iterable[CallRecord]) -> float:
    """The time of a request that has the `known` calls in its history: `now`, unless a clock says that it
    came before one of them."""
    latest = max((call.created for call in known), default=-inf)
    return now if now > latest else nextafter(latest, inf)


def recognised(history: Sequence[AnsweredCall], calls: Calls) -> dict[str, CallRecord]:
    """Which of a conversation's recorded `calls` those of a client's history are, by `AnsweredCall.key` and
    in their order.

    Clients leave calls out of their histories, but do not change their order. So from the end each call is
    the latest recorded one that it may be and that comes before those found already. What was made for
    another question counts only where a call of the same question left room for it: clients that summarise
    put a text of theirs in place of the question.
    """
    reached_agent = [call for call in calls if call.passed]
    found: dict[int, int] = {}
    for asked, recorded in ((_origin, _recorded_origin), (_question_aside, _recorded_question_aside)):
        if len(found) < min(len(history), len(reached_agent)):
            places: defaultdict[Sign, list[int]] = defaultdict(list)
            for place, call in enumerate(reached_agent):
                places[call.call_id, recorded(call)].append(place)
            _recognise([(call.call.id, asked(call)) for call in history], places, len(reached_agent), found)
    if len(found) < min(len(history), len(reached_agent)):
        _recognise_renamed(history, reached_agent, found)
    return {history[number].key: reached_agent[found[number]] for number in sorted(found)}


def _recognise(
    history: Sequence[Sign], places: Mapping[Sign, Sequence[int]], limit: int, found: dict[int, int]
) -> None:
    """Adds to `found`, by the places in the history, those of the recorded calls, all below `limit`."""
    least = [-1]
    for number in range(len(history)):
        least.append(found.get(number, least[-1]))
    for number in range(len(history) - 1, -1, -1):
        if number not in found:
            id, sign = history[number]
            # Where upstream gives no id, clients make one up.
            match = max(_latest(places.get((each, sign), ()), limit) for each in (id, ""))
            if match <= least[number]:
                continue
            found[number] = match
        limit = found[number]


def _recognise_renamed(history: Sequence[AnsweredCall], calls: Calls, found: dict[int, int]) -> None:
    """The same for calls whose ids the client changed on the way: by what they ask alone."""
    ids = {call.call_id for call in calls}
    places: defaultdict[Sign, list[int]] = defaultdict(list)
    for place, call in enumerate(calls):
        places["", call.origin].append(place)
    signs = [("", "" if call.call.id in ids else call.origin) for call in history]
    _recognise(signs, {sign: places[sign] for sign in signs if sign[1]}, len(calls), found)


def _latest(places: Sequence[int], limit: int) -> int:
    """The last of the rising `places` below the limit, -1 without one."""
    before = bisect_left(places, limit)
    return places[before - 1] if before else -1


def _origin(call: AnsweredCall) -> str:
    return call.origin


def _recorded_origin(record: CallRecord) -> str:
    return record.origin


def _question_aside(call: AnsweredCall) -> str:
    return signature_digest(call.signature)


def _recorded_question_aside(record: CallRecord) -> str:
    return signature_digest(record.signature)


def noticed_before(call: CallRecord, calls: Calls) -> list[CallRecord]:
    """The calls that a notice withheld in the same turn, before this one was generated: asked for again, they
    pass under every policy."""
    here, stage = turn_place(call), _stage(call)
    return [other for other in calls if other.noticed and turn_place(other) == here and _stage(other) < stage]


def together(call: CallRecord, calls: Calls) -> list[CallRecord]:
    """The other calls that were generated at once with this one."""
    stage = turn_place(call), _stage(call)
    return [other for other in calls if other is not call and (turn_place(other), _stage(other)) == stage]


def _stage(record: CallRecord) -> tuple[int, bool]:
    return record.generation, not record.noticed


def until_crossing(calls: Calls, withheld: Sequence[bool]) -> int:
    """How many of the calls come up to the first one that would be withheld (`withheld` says it of each),
    that one included.

    A call that was withheld when it was recorded ends them, too: up to there the conversation went the way of
    an ungoverned one, whatever its arm; what comes later belongs to another course.
    """
    ends = (number for number, call in enumerate(calls, 1) if withheld[number - 1] or not call.passed)
    return next(ends, len(calls))


def of_model(traffic: Iterable[Calls], model: str) -> list[Calls]:
    """The conversations in which `model` proposed a call, whole: what another model did in one, or what was
    withheld from it, is part of its course."""
    return [calls for calls in traffic if any(call.model == model for call in calls)]


def begun_since(traffic: Iterable[Calls], moment: float) -> list[Calls]:
    """The conversations that began then or later, whole: half a conversation has another first crossing."""
    return [calls for calls in traffic if calls[0].created >= moment]
