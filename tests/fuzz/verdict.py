"""What a client may see: upstream's answer, without what only the governor asked for, or an error in good
form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from governor.request import ClientView, untouched
from governor_server import exact_json, sse
from governor_server.paths import is_chat
from tests.fuzz.cases import Case
from tests.server.framings import Fate
from tests.server.scripted_upstream import EVENTS, HANG, Accident, Answer, Received

TOP_LOGPROBS = 20
ALL = ClientView(logprobs=True, asked=TOP_LOGPROBS, sent=TOP_LOGPROBS)
LOGPROBS = re.compile(rb'"logprobs": ?\{"content": ?\[\{.*\}(?=, ?"finish_reason")', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client got. `whole` is False where the connection broke before the end of the body."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    whole: bool
    failure: str = ""


def wrong(case: Case, seen: Seen, received: Sequence[Received], given: Sequence[Answer], acted: bool) -> str:
    """What is wrong with what the client saw, "" if nothing is.

    `received` is what upstream was asked and `given` its answers; `acted`: a call was withheld.
    """
    asked = [i for i, request in enumerate(received) if request.header("x-request-id") is not None]
    if not asked:
        return (
            ""
            if seen.status >= 400 and is_error(seen.body)
            else f"status {seen.status}, and upstream not asked"
        )
    last = given[asked[-1]]
    if any(not is_probe(request) for i, request in enumerate(received) if i not in asked):
        acted = True
    broken = accident(last)
    sent = sent_of(last)
    # A machine that is busy with others may be too slow for its own timeouts.
    if seen.status == 504 or (seen.status == 502 and broken):
        return "" if is_error(seen.body) else "an error of the proxy in no good form"
    if seen.failure:
        return f"no answer: {seen.failure}"
    if seen.status != last.status:
        return f"status {seen.status} for upstream's {last.status}"
    if not seen.whole and not broken:
        return "the body breaks off, and upstream's does not"
    if seen.whole and broken and not said_all(last):
        return "the body ends as if it were whole, and upstream's broke off"
    view = governed(case)
    streamed = last.headers[0] == EVENTS
    readable = all(name != "content-encoding" or value == "identity" for name, value in last.headers)
    if view is None or last.status != 200 or not readable:
        same = seen.body == sent if seen.whole else sent.startswith(without_error(seen.body))
        return "" if same else "not the bytes that upstream sent"
    if seen.body == sent:
        return ""
    if acted:
        return well_formed(seen.body, [piece for answer in given for piece in raw_events(answer)])
    if streamed:
        return stream_differs(seen, sent, view)
    return whole_differs(seen.body, sent, view)


def wrong_framing(
    case: Case, seen: Seen, received: Sequence[Received], given: Sequence[Answer], acted: bool
) -> str:
    """The same of a request that was sent in a framing of its own: what upstream must not hear of it did not,
    and what it must got there byte for byte."""
    assert (framed := case.framed) is not None
    asked = [request for request in received if request.header("x-request-id") is not None]
    if framed.fate is not Fate.ARRIVES:
        if asked:
            return f"{framed.name}: upstream was asked"
        if framed.fate is Fate.BREAKS_OFF and not seen.status:
            return ""
        return "" if seen.status >= 400 and is_error(seen.body) else f"{framed.name}: status {seen.status}"
    if not asked:
        return f"{framed.name}: status {seen.status}, and upstream not asked"
    if asked[-1].method != framed.method or asked[-1].target != case.target:
        return f"{framed.name}: upstream was asked {asked[-1].method} {asked[-1].target}"
    if governed(case) is None and asked[-1].body != framed.body:
        return f"{framed.name}: upstream got another body"
    return wrong(case, seen, received, given, acted)


def is_probe(request: Received) -> bool:
    """Whether a request upstream got is one for a forced answer."""
    try:
        body = exact_json.loads(request.body)
    except ValueError:
        return False
    return bool(body.get("tool_choice") == "none" and body.get("stream") is False and body.get("logprobs"))


def accident(answer: Answer) -> bool:
    """Whether upstream breaks off in the middle."""
    return any(isinstance(piece, Accident) for piece in (*answer.before, *answer.pieces))


def said_all(answer: Answer) -> bool:
    """Whether upstream broke off when a client could know that nothing was to come."""
    sent = sent_of(answer)
    if answer.length and len(sent) == sum(len(piece) for piece in answer.pieces if isinstance(piece, bytes)):
        return True
    events, _ = split(sent)
    if not events or not events[-1].rstrip().endswith(b"[DONE]"):
        return False
    # What hangs has not broken off: nobody waits for more than the protocol's last word.
    return HANG in answer.pieces or any(ends(event) for event in events)


def ends(event: bytes) -> bool:
    """Whether a message ends with this event."""
    try:
        return bool(parsed(event)["choices"][0]["finish_reason"])
    except (KeyError, IndexError, TypeError):
        return False


def sent_of(answer: Answer) -> bytes:
    """What comes before the accident; all of an answer without one."""
    ends = [i for i, piece in enumerate(answer.pieces) if isinstance(piece, Accident)]
    pieces = answer.pieces[: ends[0]] if ends else answer.pieces
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def governed(case: Case) -> ClientView | None:
    """What the client asked for, None where its request goes through as it is."""
    if case.framed is not None and not (case.framed.method == "POST" and is_chat(unquote(case.target))):
        return None
    try:
        body = exact_json.loads(case.body)
    except ValueError:
        return None
    if case.headers.get("x-governor") == "off" or untouched(body) is not None:
        return None
    try:
        return ClientView.of(body, TOP_LOGPROBS)
    except Exception:
        return None


def is_error(body: bytes) -> bool:
    """Whether a body is an error in the shape of the API."""
    try:
        error = exact_json.loads(body)["error"]
        return isinstance(error["message"], str) and isinstance(error["type"], str)
    except (KeyError, TypeError, ValueError):
        return False


def without_error(body: bytes) -> bytes:
    """A broken stream without the error at its end."""
    head, mark, tail = body.rpartition(b'data: {"error"')
    return head if mark and is_error(tail.removeprefix(b"data: ") and b'{"error"' + tail.strip()) else body


def split(body: bytes) -> tuple[list[bytes], bytes]:
    """The events of a stream up to the one that says it is done, and what is no event."""
    reader = sse.EventReader()
    events = []
    for event in reader.feed(body):
        # A comment overtakes what is held back: it says that somebody is there.
        if event.data is not None:
            events.append(event.raw)
        if event.data is not None and sse.is_done(event.data):
            return events, b""
    return events, reader.rest()


def parsed(event: bytes, view: ClientView = ALL) -> Any:
    """The JSON of an event, None where it has none."""
    for found in sse.EventReader().feed(event):
        if found.data is not None:
            try:
                return read(found.data, view)
            except ValueError:
                return None
    return None


def stripped(value: Any) -> Any:
    """Without what the governor explains, if it was asked."""
    return (
        {key: item for key, item in value.items() if key != "governor"} if isinstance(value, dict) else value
    )


def seen_as(event: bytes, view: ClientView) -> tuple[bool, Any]:
    """Whether an event may be missing for the client, and what it may be instead of itself."""
    chunk = parsed(event, view)
    if not isinstance(chunk, dict):
        return False, None
    try:
        shown = view.chunk(chunk)
    except Exception:
        return False, None
    return shown is None, shown


def read(body: bytes, view: ClientView) -> Any:
    """The JSON of a body; where that is none, without its logprobs, if the client does not get them. Raises
    ValueError."""
    try:
        return exact_json.loads(body)
    except ValueError:
        if view.logprobs:
            raise
        return exact_json.loads(LOGPROBS.sub(b'"logprobs":{"content":[0]}', body))


def stream_differs(seen: Seen, sent: bytes, view: ClientView) -> str:
    """Every event in its order, as it is or without the logprobs that nobody asked for."""
    body = seen.body if seen.whole else without_error(seen.body)
    events, rest = split(sent)
    got, got_rest = split(body)
    if got_rest and got_rest != rest:
        return f"ends with {got_rest[:80]!r}, which is no event of upstream's"
    at = 0
    for event in got:
        chunk = stripped(parsed(event))
        while at < len(events):
            may_miss, instead = seen_as(events[at], view)
            if event == events[at] or (instead is not None and chunk == instead):
                break
            if not may_miss:
                return f"has {event[:200]!r} in the place of {events[at][:200]!r}"
            at += 1
        else:
            return f"has {event[:200]!r}, which upstream did not send"
        at += 1
    missing = [event for event in events[at:] if not seen_as(event, view)[0]]
    if missing and seen.whole:
        return f"lacks {missing[0][:200]!r}"
    return ""


def whole_differs(body: bytes, sent: bytes, view: ClientView) -> str:
    """The same response, without the logprobs that nobody asked for."""
    try:
        response, got = read(sent, view), stripped(exact_json.loads(body))
    except ValueError:
        return "not the bytes that upstream sent"
    return "" if got in (response, view.response(response)) else "another response than upstream's"


def raw_events(answer: Answer) -> list[bytes]:
    """The events of an answer, and what follows them."""
    events, rest = split(b"".join(piece for piece in answer.pieces if isinstance(piece, bytes)))
    return [*events, rest]


def well_formed(body: bytes, sent: Sequence[bytes]) -> str:
    """Where calls were withheld: JSON, or what upstream sent."""
    if body.startswith(b"{"):
        try:
            exact_json.loads(body)
        except ValueError:
            return "a body that is no JSON"
        return ""
    events, rest = split(body)
    for event in events:
        if event not in sent and parsed(event) is None and b"[DONE]" not in event:
            return f"has {event[:200]!r}, which is neither upstream's nor a chunk"
    return "" if not rest or rest in sent else f"ends with {rest[:80]!r}"
