"""An upstream that is asked the same thing once.

A sweep plays the same tasks under many settings, and most of what it asks is the same: the same messages, so
with a greedy model the same answer. Such requests are answered from memory. Whoever asks cannot tell, and
counts tokens as if each request had been served.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson

from governor_training.errors import TrainingError

TIMEOUT_S = 600.0
ATTEMPTS = 3
_MEASURING = ("logprobs", "top_logprobs")


class UpstreamRefused(TrainingError):
    """Upstream answered with an error; `status` is HTTP's, 0 where no answer came."""

    def __init__(self, status: int, text: str) -> None:
        what = f"upstream answered with status {status}" if status else "no answer from upstream"
        super().__init__(f"{what}: {' '.join(text[:300].split())}")
        self.status = status


class Upstream(Protocol):
    """What answers whole chat completions. Raises `UpstreamRefused`."""

    async def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any]: ...


class HttpUpstream:
    """The server at `url` (without `/v1`). Use it as an asynchronous context manager."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpUpstream:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._session is not None, "used outside of its context"
        status, raw = await self._posted(self._session, orjson.dumps(body))
        if status != 200:
            raise UpstreamRefused(status, raw.decode("utf-8", "replace"))
        answer: Mapping[str, Any] = orjson.loads(raw)
        return answer

    async def _posted(self, session: aiohttp.ClientSession, body: bytes) -> tuple[int, bytes]:
        """Once more where the connection was gone: a server closes what was idle for seconds, and between two
        requests of a sweep there may be as many. A chat completion changes nothing."""
        headers = {"content-type": "application/json"}
        for attempt in range(ATTEMPTS):
            try:
                async with session.post(self._url, data=body, headers=headers) as response:
                    return response.status, await response.read()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise UpstreamRefused(0, f"{type(error).__name__}: {error}") from error
        raise AssertionError


class Answers:
    """Answers that outlive the process, in a SQLite file. They are those of one model: whoever changes it
    begins with another file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, answer BLOB)")

    def get(self, request: bytes) -> bytes | None:
        row = self._database.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return row[0] if row else None

    def put(self, request: bytes, answer: bytes) -> None:
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (request, answer))


class CachingUpstream:
    """Remembers the answers of `upstream` to greedy requests, by their body.

    The ids of calls do not count, and every answer has new ones. Every request is measured with
    `top_logprobs`, also one that does not ask for it, so that it can be the same as one that does.
    `asked` and `served` count requests: those of upstream, and all. `kept` are answers of an earlier process.
    """

    def __init__(self, upstream: Upstream, *, top_logprobs: int = 20, kept: Answers | None = None) -> None:
        self._upstream, self._top_logprobs, self._kept = upstream, top_logprobs, kept
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._ids = count()
        self.asked = self.served = 0

    async def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.served += 1
        if body.get("temperature") != 0:
            self.asked += 1
            return self._with_new_ids(await self._upstream(body))
        key = _key(body)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = asyncio.get_running_loop().create_future()
            try:
                answer.set_result(await self._found(key, body))
            except BaseException as error:
                del self._answers[key]
                # Those who wait for it get the error too; without them nobody would ever look at it.
                answer.set_exception(error if isinstance(error, Exception) else UpstreamRefused(0, "ended"))
                answer.exception()
                raise
        return self._with_new_ids(orjson.loads(zlib.decompress(await answer)))

    async def _found(self, key: bytes, body: Mapping[str, Any]) -> bytes:
        if self._kept is None:
            return await self._ask(body)
        answer = self._kept.get(key)
        if answer is None:
            answer = await self._ask(body)
            self._kept.put(key, answer)
        return answer

    async def _ask(self, body: Mapping[str, Any]) -> bytes:
        self.asked += 1
        wanted = max(body.get("top_logprobs") or 0, self._top_logprobs)
        response = await self._upstream({**body, "logprobs": True, "top_logprobs": wanted})
        return zlib.compress(orjson.dumps(_without_bytes(response)), 1)

    def _with_new_ids(self, response: Mapping[str, Any]) -> Mapping[str, Any]:
        for choice in response["choices"]:
            for call in choice["message"].get("tool_calls") or ():
                call["id"] = f"call_{next(self._ids)}"
        return response


def _without_bytes(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each token comes with its bytes too, which are half of the response, and nobody reads them."""
    for choice in response["choices"]:
        for token in (choice.get("logprobs") or {}).get("content") or ():
            for one in (token, *token.get("top_logprobs", ())):
                one.pop("bytes", None)
    return response


def _key(body: Mapping[str, Any]) -> bytes:
    ids: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return [plain(item) for item in value] if isinstance(value, list) else value
        changed = {name: plain(item) for name, item in value.items()}
        for name in ("id", "tool_call_id"):
            if isinstance(changed.get(name), str):
                changed[name] = ids.setdefault(changed[name], str(len(ids)))
        return changed

    asked = {name: value for name, value in body.items() if name not in _MEASURING}
    asked["messages"] = plain(list(body["messages"]))
    return sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).digest()
