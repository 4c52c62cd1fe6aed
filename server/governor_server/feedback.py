"""What became of conversations: told by the agent, joined with the records of their calls."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from governor.outcomes import Effect
from governor_server.api_errors import described
from governor_server.tables import IN_MEMORY, Backing, Row, Table

if TYPE_CHECKING:
    from governor_server.shared import Shared

FEEDBACK = "/governor/feedback"
EFFECT = "/governor/effect"

MAX_BODY_BYTES = 64 * 1024
MAX_ITEMS = 1000
MAX_NAME_LENGTH = 256
FIELDS = frozenset({"conversation", "score", "passed", "source", "comment"})

NAME: Final = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
ITEM: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["conversation"],
    "properties": {
        "conversation": NAME,
        "source": {"type": "string", "maxLength": MAX_NAME_LENGTH},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "passed": {"type": "boolean"},
        "comment": {},
    },
    "oneOf": [{"required": ["score"]}, {"required": ["passed"]}],
    "additionalProperties": False,
}
"""One item of a body, as a JSON schema. The docstring of the route says it in words."""
STORED: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["conversation", "source", "score"],
    "properties": {key: ITEM["properties"][key] for key in ("conversation", "source", "score")},
    "additionalProperties": False,
}

Key = tuple[str, str]


class InvalidFeedback(ValueError):
    """A body that is no feedback; the text is one line for the client."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a conversation ended, according to one source: `score` in [0, 1], where 0 is failed and 1 passed;
    `created` in seconds of the store's clock."""

    conversation: str
    source: str
    score: float
    created: float

    @property
    def key(self) -> Key:
        return self.conversation, self.source


class FeedbackStore:
    """The feedback of recent conversations, the last of each source. Safe to use from several threads.

    `path` is a file, which may be that of the records, or `:memory:`. At most `max_items` are kept, the
    oldest go first, and none is counted more than `ttl_s` seconds after it came. With `shared`, what other
    processes were told is here too, a moment later.
    """

    def __init__(
        self,
        path: str = IN_MEMORY,
        *,
        max_items: int = 20_000,
        ttl_s: float = 7 * 24 * 3600.0,
        shared: Shared | None = None,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_items = max_items
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._items: OrderedDict[Key, Feedback] = OrderedDict()
        self._conversations: dict[str, dict[str, Feedback]] = {}
        self._behind = Backing(
            OUTCOMES,
            path,
            shared,
            max_rows=max_items,
            ttl_s=ttl_s,
            now=clock(),
            restore=self._insert,
            take=self._take,
            on_error=on_error,
        )

    def __repr__(self) -> str:
        return f"<FeedbackStore [{len(self)} items, {len(self._conversations)} conversations]>"

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Iterable[Feedback]) -> None:
        """Keep feedback; what the same source said of the conversation before is replaced."""
        items = tuple(items)
        with self._lock:
            for item in items:
                self._insert(item)
        for item in items:
            self._behind.write(item)

    def score(self, conversation: str) -> float | None:
        """The mean over the sources, or None where none spoke."""
        with self._lock:
            return self._scores([conversation]).get(conversation)

    def scores(self) -> dict[str, float]:
        """The score of every conversation that has one."""
        with self._lock:
            return self._scores(self._conversations)

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        self._behind.close()

    def _take(self, item: Feedback) -> None:
        """From another process."""
        with self._lock:
            known = self._items.get(item.key)
            if known is None or known.created <= item.created:
                self._insert(item)

    def _scores(self, conversations: Iterable[str]) -> dict[str, float]:
        self._expire()
        oldest = self._oldest()
        alive = {
            name: [item.score for item in sources.values() if item.created >= oldest]
            for name in conversations
            if (sources := self._conversations.get(name))
        }
        return {name: fmean(scores) for name, scores in alive.items() if scores}

    def _insert(self, item: Feedback) -> None:
        self._remove(item.key)
        self._items[item.key] = item
        self._conversations.setdefault(item.conversation, {})[item.source] = item
        self._expire()
        while len(self._items) > self._max_items:
            self._remove(next(iter(self._items)))

    def _remove(self, key: Key) -> None:
        if self._items.pop(key, None) is None:
            return
        conversation, source = key
        sources = self._conversations[conversation]
        del sources[source]
        if not sources:
            del self._conversations[conversation]

    def _expire(self) -> None:
        """The items stand in the order in which they came, so that the expired ones are the first, but for
        some of other processes: those go a little later, and do not count until then."""
        oldest = self._oldest()
        while self._items:
            key, item = next(iter(self._items.items()))
            if item.created >= oldest:
                return
            self._remove(key)

    def _oldest(self) -> float:
        return self._clock() - self._ttl_s


def _encode(item: Feedback) -> Row:
    return orjson.dumps(item.key).decode(), item.created, orjson.dumps(asdict(item))


OUTCOMES = Table("outcomes", "name", _encode, lambda body: Feedback(**orjson.loads(body)))


def feedback_routes(
    feedback: FeedbackStore, compared: Callable[[], Effect], clock: Callable[[], float] = time.time
) -> APIRouter:
    """`POST /governor/feedback` takes feedback, `GET /governor/effect` says what governing did, which
    `compared` works out."""
    routes = APIRouter()

    @routes.post(
        FEEDBACK,
        responses={
            200: {"content": {"application/json": {"schema": one_or_many(STORED)}}},
            **described({400: "no feedback; the message says why"}),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": one_or_many(ITEM)}},
            }
        },
    )
    async def take(request: Request) -> Response:
        """How a conversation ended: an object, or a list of up to 1,000, of `conversation` (its name, as
        `x-governor-conversation` had it), either `passed` (true or false) or `score` (0 to 1), and if you
        like `source` (who says so; the last word of each source counts, and the mean over sources) and
        `comment`, which is not kept. Answers with what was stored, or 400."""
        try:
            given = parsed(await bounded_body(request))
            many = isinstance(given, list)
            items = [feedback_from(item, clock()) for item in (given if many else [given])]
        except InvalidFeedback as error:
            return refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        feedback.put(items)
        stored = [{"conversation": i.conversation, "source": i.source, "score": i.score} for i in items]
        return Response(orjson.dumps(stored if many else stored[0]), media_type="application/json")

    # Not a coroutine, so that a thread does it: all turns are looked at.
    @routes.get(EFFECT)
    def effect() -> Mapping[str, Any]:
        """The governed conversations against the holdout, in score, calls, tokens (of the client's requests,
        and of the governor's own), seconds of waiting and money: means over whole conversations, differences
        with 95% intervals where there are enough conversations for one, and a sentence. `under_way`
        conversations are not compared yet, and of `cut` ones the first turns are forgotten."""
        return compared().as_dict()

    return routes


def one_or_many(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an item, or of a list of them."""
    return {"oneOf": [item, {"type": "array", "items": item, "maxItems": MAX_ITEMS}]}


async def bounded_body(request: Request) -> bytes:
    """The body, read no further than its limit. Raises `InvalidFeedback` beyond it."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise InvalidFeedback(
                f"The body is larger than {MAX_BODY_BYTES} bytes; send fewer items at once."
            )
    return body


def parsed(body: bytes) -> Any:
    """The JSON value of a body. Raises `InvalidFeedback`, also on a list that is too long."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidFeedback(f"The body is not JSON: {error}.") from None
    if isinstance(given, list) and len(given) > MAX_ITEMS:
        raise InvalidFeedback(f"The list has {len(given)} items; at most {MAX_ITEMS} are taken at once.")
    return given


def feedback_from(given: Any, now: float) -> Feedback:
    """One item of a body; a comment is taken and forgotten, since it may hold text of the conversation.

    Raises `InvalidFeedback`.
    """
    if not isinstance(given, dict):
        raise InvalidFeedback("Feedback is a JSON object, or a list of them.")
    if unknown := sorted(given.keys() - FIELDS):
        raise InvalidFeedback(f"Unknown field {unknown[0][:MAX_NAME_LENGTH]!r}; known are {sorted(FIELDS)}.")
    conversation, source = given.get("conversation"), given.get("source", "")
    if not isinstance(conversation, str) or not 0 < len(conversation) <= MAX_NAME_LENGTH:
        raise InvalidFeedback(f"'conversation' must be a string of 1 to {MAX_NAME_LENGTH} characters.")
    if not isinstance(source, str) or len(source) > MAX_NAME_LENGTH:
        raise InvalidFeedback(f"'source' must be a string of at most {MAX_NAME_LENGTH} characters.")
    return Feedback(conversation, source, score_from(given), now)


def score_from(given: Mapping[str, Any]) -> float:
    """The score of an item: its `score`, or 1 or 0 for `passed`. Raises `InvalidFeedback`."""
    if ("score" in given) == ("passed" in given):
        raise InvalidFeedback("Give either 'score' or 'passed'.")
    if "passed" in given:
        if not isinstance(given["passed"], bool):
            raise InvalidFeedback("'passed' must be true or false.")
        return float(given["passed"])
    score = given["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise InvalidFeedback("'score' must be a number from 0 to 1.")
    return float(score)


def refusal(error: InvalidFeedback) -> Response:
    """The error in the shape that OpenAI's clients read."""
    body = {"message": str(error), "type": "invalid_request_error", "param": None, "code": 400}
    return Response(orjson.dumps({"error": body}), 400, media_type="application/json")
