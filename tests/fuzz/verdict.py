"""What a client may see: upstream's answer, without what only the governor asked for, or an error in good
form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from governor.request import ClientView, untouched
from governor_server import exact_json, sse
from governor_server.keep_alive import COMMENT
from governor_server.paths import is_chat
from tests.fuzz.cases import Case
from tests.server.framings import Fate
from tests.server.scripted_upstream import EVENTS, HANG, Accident, Answer, Received

TOP_LOGPROBS = 20
MAX_HELD_BYTES = 64 * 1024
"""Of an answer: a larger one goes on as it comes, without the logprobs that nobody asked for."""
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
    if any(not is_probe(request) for i, request in enumerate(received) if i not in asked):
        acted = True
    last = given[asked[-1]]
    view = governed(case)
    if view is None:
        return answered(seen, last, None, [])
    withheld = given if acted else []
    attempts = attempted([received[i] for i in asked], [given[i] for i in asked])
    if problem := asked_wrongly(case, attempts):
        return problem
    if len(attempts) == 1:
        return answered(seen, last, view, withheld)
    # All of the answer to the client's own request is the client's.
    return answered_again(seen, attempts[0][1], last, replace(view, unchanged=True), withheld)


def answered(seen: Seen, last: Answer, view: ClientView | None, withheld: Sequence[Answer]) -> str:
    """What is wrong with what the client saw of upstream's `last` answer; `withheld`: what upstream gave
    for a message of which calls were withheld."""
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
    if view is None or last.status != 200 or packed(last):
        same = seen.body == sent if seen.whole else sent.startswith(without_error(seen.body))
        return "" if same else "not the bytes that upstream sent"
    if seen.body == sent:
        return ""
    if withheld:
        return well_formed(seen.body, [piece for answer in withheld for piece in raw_events(answer)])
    if last.headers[0] == EVENTS:
        return stream_differs(seen, sent, view)
    return whole_differs(seen.body, sent, view)


def answered_again(
    seen: Seen, first: Answer, last: Answer, view: ClientView, withheld: Sequence[Answer]
) -> str:
    """The same of an answer to the client's own request, after the `first` one was refused: the comments of
    that may have gone on already, and with them the head."""
    problem = answered(seen, last, view, withheld)
    rest = without_comments(seen.body, first)
    if not problem or seen.status != 200 or rest == seen.body:
        return problem
    if last.status == 200:
        return answered(replace(seen, body=rest), last, view, withheld)
    if accident(last):
        return "the body ends as if it were whole, and upstream's broke off" if seen.whole else ""
    return told_in_stream(rest, sent_of(last))


def told_in_stream(body: bytes, sent: bytes) -> str:
    """An error of upstream as an event, where the head was out; one in good form in the place of others."""
    events, rest = split(body)
    told = [parsed(event) for event in events[:1]]
    if rest or len(events) != 2 or b"[DONE]" not in events[1] or not isinstance(told[0], dict):
        return f"tells {body[:200]!r} of upstream's error"
    try:
        expected = {"error": exact_json.loads(sent)["error"]}
    except (KeyError, TypeError, ValueError):
        return "" if is_error(exact_json.dumps(told[0])) else "an error of the proxy in no good form"
    return "" if told[0] == expected else "another error than upstream's"


def without_comments(body: bytes, first: Answer) -> bytes:
    """What follows the comments of the `first` answer, and the proxy's own."""
    comments = {COMMENT} | {
        event.raw for event in sse.EventReader().feed(sent_of(first)) if sse.is_comment(event.raw)
    }
    for event in sse.EventReader().feed(body):
        if event.raw not in comments:
            break
        body = body.removeprefix(event.raw)
    return body


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


def attempted(asked: Sequence[Received], given: Sequence[Answer]) -> list[tuple[Received, Answer]]:
    """The client's request and upstream's answer, each time that it was asked. What went out on a connection
    that had worked before and broke without a word is sent once more as it was: a reset takes the head of the
    answer with it."""
    pairs = list(zip(asked, given, strict=True))
    anew = [
        earlier.body == later.body and accident(answer) for (earlier, answer), (later, _) in pairwise(pairs)
    ]
    return [pair for pair, sent_anew in zip(pairs, [*anew, False], strict=True) if not sent_anew]


def asked_wrongly(case: Case, attempts: Sequence[tuple[Received, Answer]]) -> str:
    """Whether upstream was asked too often, not often enough or for something else: what it refuses of what
    was added to the client's request is asked once more, as the client asked it, and all else once."""
    own = case.body if case.framed is None else case.framed.body
    (request, answer), *again = attempts
    if not again:
        missed = request.body != own and refused(case, answer)
        return "upstream refused what was added, and was not asked again" if missed else ""
    if len(again) > 1:
        return f"upstream was asked {len(attempts)} times"
    if request.body == own:
        return "upstream was asked for the client's own request twice"
    if again[0][0].body != own:
        return "what upstream was asked again is not what the client asked"
    return "upstream was asked again, and had not refused" if refused(case, answer) is False else ""


def refused(case: Case, answer: Answer) -> bool | None:
    """Whether upstream's answer to a changed request is a refusal of what was added; None where that hangs on
    what the client had of it by then."""
    if accident(answer) or packed(answer):
        return None
    sent = sent_of(answer)
    if answer.status != 200:
        waits = answer.status == 503 and any(name == "retry-after" for name, _ in answer.headers)
        return answer.status >= 400 and answer.status not in (401, 429) and not waits
    streamed = bool(exact_json.loads(case.body).get("stream"))
    if streamed is not (answer.headers[0] == EVENTS) or len(sent) > MAX_HELD_BYTES:
        return None
    return refused_stream(sent) if streamed else refused_whole(sent)


def refused_whole(sent: bytes) -> bool | None:
    """The same of a whole response, which should be a message."""
    try:
        body = exact_json.loads(sent)
        message = body["choices"][0]["message"]
    except (ValueError, TypeError, LookupError):
        # What is broken in the logprobs alone may not have been looked at.
        return None if b'"logprobs"' in sent else True
    if not isinstance(message, dict) or body.get("error"):
        return True
    return False if message.get("content") else None


def refused_stream(sent: bytes) -> bool | None:
    """The same of a stream: whether its first event is an error, or all of its events are of a message that
    has its end."""
    events, rest = split(sent)
    chunks = [parsed(event) for event in events if not sse.is_done(event.removeprefix(b"data:"))]
    if not chunks or (isinstance(chunks[0], dict) and chunks[0].get("error")):
        return None if rest else True
    good = all(isinstance(chunk, dict) and not chunk.get("error") for chunk in chunks)
    return False if good and any(map(ends, events)) else None


def packed(answer: Answer) -> bool:
    """Whether a body is compressed; what only says so is not."""
    names = {value for name, value in answer.headers if name == "content-encoding"}
    return bool(names - {"identity"}) and sent_of(answer).startswith(b"\x1f")


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


def filtered(got: bytes, sent: bytes, view: ClientView) -> bool:
    """Whether `got` is what goes on of an event or body that is no JSON to us: what lenient clients read of
    it, as a whole or line by line, is without the logprobs that nobody asked for."""
    whole, parts = got.splitlines(), sent.splitlines()
    data = b"\n".join(line.removeprefix(b"data:") for line in whole)
    if cut(leniently(b"\n".join(line.removeprefix(b"data:") for line in parts)), view) == leniently(data):
        return True
    return len(whole) == len(parts) and all(
        line == part or (part.startswith(b"data:") and cut(leniently(part[5:]), view) == leniently(line[5:]))
        for line, part in zip(whole, parts, strict=True)
    )


def leniently(text: bytes) -> Any:
    """The JSON of a text as the most lenient client reads it; the text itself where it is none."""
    try:
        return json.loads(text.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return text


def cut(value: Any, view: ClientView) -> Any:
    """A JSON value without the logprobs that nobody asked for, wherever they stand."""
    if isinstance(value, list):
        return [cut(item, view) for item in value]
    if not isinstance(value, dict):
        return value
    shown = {key: cut(item, view) for key, item in value.items()}
    if not view.logprobs:
        return shown | ({"logprobs": None} if "logprobs" in shown else {})
    top = shown.get("top_logprobs")
    return shown | ({"top_logprobs": top[: view.asked]} if isinstance(top, list) else {})


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
    # A client that reads lines takes an event without an end for one, too.
    if got_rest and got_rest != rest and not filtered(got_rest, rest, view):
        return f"ends with {got_rest[:80]!r}, which is no event of upstream's"
    at = 0
    for event in got:
        chunk = stripped(parsed(event))
        while at < len(events):
            may_miss, instead = seen_as(events[at], view)
            if event == events[at] or (instead is not None and chunk == instead):
                break
            if parsed(events[at]) is None and filtered(event, events[at], view):
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
        return "" if filtered(body, sent, view) else "not the bytes that upstream sent"
    if len(sent) > MAX_HELD_BYTES and got == cut(response, view):
        return ""
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
