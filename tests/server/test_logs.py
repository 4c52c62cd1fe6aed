"""The log: what a line holds, what it never holds, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from governor_server import logs
from governor_server.current import CurrentRequest, current
from governor_server.logs import count_dropped, fields, logging_to
from tests.server.bodies import answer
from tests.server.scripted_upstream import JSON, Answer, Proxied, proxied, scripted
from tests.server.test_cli import get, governor
from tests.server.waiting import PATIENCE_S
from tests.wire.generated import Generated, chat

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
SURE = Answer.whole(Generated(content="Oslo", id="chatcmpl-2"))
HEX = re.compile("[0-9a-f]{32}")


class Log:
    """What was logged, once the context of `logging_as` is left."""

    def __init__(self) -> None:
        self.stream = StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def of(self, message: str) -> dict[str, Any]:
        """The only line whose message begins so."""
        (found,) = [line for line in self.lines if line["message"].startswith(message)]
        return found


@contextmanager
def logging_as(form: logs.Format = "json", level: str = "info") -> Iterator[Log]:
    log = Log()
    with logging_to(log.stream, level, form):
        yield log


async def finished(proxy: Proxied, requests: int = 1) -> None:
    """Returns once so many requests are over, and what came after them."""
    (metric,) = proxy.app.metrics.requests.collect()
    async with asyncio.timeout(PATIENCE_S):
        while sum(sample.value for sample in metric.samples) < requests:
            await asyncio.sleep(0.01)
            (metric,) = proxy.app.metrics.requests.collect()
    await asyncio.gather(*proxy.app.proxy.reviews)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_line_with_what_became_of_it(stream: bool) -> None:
    """Under the id that the client gave and gets back."""
    answers = [answer(CALLING, stream), SURE]
    with logging_as() as log:
        async with scripted(*answers) as upstream, proxied(upstream) as proxy:
            _, headers, _ = await proxy.chat(chat(stream=stream), x_request_id="mine-1")
            await finished(proxy)
    line = log.of("POST /v1/chat/completions 200")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 < line.pop("seconds") < 10
    assert line.pop("message").endswith("s: 1 answer")
    assert line == {
        "level": "info",
        "logger": "governor_server.proxy",
        "request_id": "mine-1",
        "tenant": "",
        "method": "POST",
        "path": "/v1/chat/completions",
        "route": "chat",
        "status": 200,
        "decisions": {"answer": 1},
        "proposed": {"answer": 1},
    }
    assert headers.getall("x-request-id") == ["mine-1"]  # type: ignore[attr-defined]


async def test_what_is_decided_after_the_answer_has_a_line_of_its_own() -> None:
    """When observing the request's line is written by then; both have its id."""
    with logging_as() as log:
        async with scripted(answer(CALLING, False), SURE) as upstream, proxied(upstream, "observe") as proxy:
            await proxy.chat(chat(), x_request_id="r")
            await finished(proxy)
    told = log.of("reviewed: 1 pass")
    assert (told["request_id"], told["decisions"], told["proposed"]) == ("r", {"pass": 1}, {"answer": 1})
    assert log.of("POST")["decisions"] == {}


@pytest.mark.parametrize("form", ["text", "json"])
async def test_nothing_that_is_said_and_no_key_is_logged(form: logs.Format) -> None:
    """Also where upstream answers with what nobody can read, and where it does not."""
    calling = [answer(CALLING, True), SURE, Answer([b'{"Oslo'], headers=(JSON,)), Answer([b"{}"], 500)]
    with logging_as(form) as log:
        async with scripted(*calling) as upstream, proxied(upstream) as proxy:
            for stream in (True, False, False):
                await proxy.chat(chat(stream=stream), authorization="Bearer the-key")
            async with proxy.client.get("/v1/models?key=the-key") as response:
                await response.read()
            await finished(proxy, 4)
    text = log.stream.getvalue()
    assert text.count("/v1/chat/completions") >= 3
    assert not any(word in text for word in ("Norway", "Oslo", "capital", "Let me look", "the-key"))


@pytest.mark.parametrize("given", ["", "a b", "a\tb", "é", "x" * 129, '"}', "a;b"])
async def test_what_is_no_id_is_replaced_in_the_log_and_goes_on_to_upstream(given: str) -> None:
    """A client may not write the log; what it sends is upstream's business."""
    with logging_as() as log:
        async with scripted(Answer([b"x"])) as upstream, proxied(upstream) as proxy:
            headers = {"x-request-id": given}
            async with proxy.client.get("/v1/models", headers=headers) as response:
                made = response.headers["x-request-id"]
            await finished(proxy)
    assert HEX.fullmatch(made)
    assert log.of("GET")["request_id"] == made
    arrived = upstream.received[0].header("x-request-id")
    assert arrived is not None and arrived.encode("latin-1").decode() == given


async def test_each_request_without_an_id_gets_another_and_upstream_gets_none() -> None:
    """An engine names its own requests after the header: it does so as without a governor."""
    async with scripted(Answer([b"x"]), Answer([b"x"])) as upstream, proxied(upstream) as proxy:
        made = []
        for _ in range(2):
            async with proxy.client.get("/v1/models") as response:
                made.append(response.headers["x-request-id"])
    assert made[0] != made[1]
    assert [received.header("x-request-id") for received in upstream.received] == [None, None]


@pytest.mark.parametrize(("theirs", "told"), [("mine", None), ("theirs", "theirs"), ("a b", None)])
async def test_the_name_that_upstream_gives_a_request_stays(theirs: str, told: str | None) -> None:
    """vLLM sends the client's id back, or one of its own: the client gets that once, and the log has both."""
    named = Answer([b"x"], headers=[("X-Request-Id", theirs)])
    with logging_as() as log:
        async with scripted(named) as upstream, proxied(upstream) as proxy:
            async with proxy.client.get("/v1/models", headers={"x-request-id": "mine"}) as response:
                assert response.headers.getall("x-request-id") == [theirs]
            await finished(proxy)
    line = log.of("GET")
    assert (line["request_id"], line.get("upstream_request_id")) == ("mine", told)


async def test_an_error_of_the_proxy_has_the_id_too() -> None:
    """It is what a client can ask its operator about; the operator finds the warning by it."""
    with logging_as() as log:
        async with proxied("http://127.0.0.1:9") as proxy:
            status, headers, _ = await proxy.chat(chat())
            await finished(proxy)
    (id,) = {line["request_id"] for line in log.lines if "request_id" in line}
    assert (status, headers["x-request-id"]) == (502, id)
    # Without an id is the line that the start says of it.
    told = [line for line in log.lines if line["message"].startswith("upstream http://127.0.0.1:9 is unr")]
    assert [line["level"] for line in told if "request_id" in line] == ["warning"]


async def test_a_path_cannot_begin_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told as it stands on the wire."""
    with logging_as("text") as log:
        async with scripted(Answer([b"x"])) as upstream, proxied(upstream) as proxy:
            async with proxy.client.get("/a%0A2026-01-01 INFO all is well") as response:
                await response.read()
            await finished(proxy)
    (line,) = log.stream.getvalue().splitlines()
    assert "GET /a%0A2026-01-01%20INFO%20all%20is%20well 200 in" in line
    assert re.search(r" \([0-9a-f]{32}\)$", line)


def test_a_line_of_text_has_the_id_before_the_frames() -> None:
    """So that a failure's first line can be searched for."""
    with logging_as("text") as log:
        current.set(CurrentRequest("r1", "chat"))
        logging.getLogger("x").error("failed\n  File 1\n")
        current.set(None)
        logging.getLogger("x").error("alone")
    lines = log.stream.getvalue().splitlines()
    assert lines[0].endswith("ERROR x: failed (r1)")
    assert (lines[1], lines[-1].endswith("ERROR x: alone")) == ("  File 1", True)


def test_odd_values_are_told_somehow() -> None:
    """Half a character, and what JSON has no form for: a line that cannot be written would be lost."""
    with logging_as() as log:
        logging.getLogger("x").info("half \ud800", extra=fields(path=Path("/a"), number=float("inf")))
        try:
            raise ValueError("told")
        except ValueError:
            logging.getLogger("x").exception("caught")
    assert log.lines[0]["message"] == "half \ud800"
    assert log.lines[0]["path"] == "/a"
    assert "ValueError: told" in log.lines[1]["message"]


class Stuck(StringIO):
    """A reader that has stopped reading."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def write(self, text: str) -> int:
        self.reads.wait()
        return super().write(text)


async def test_a_log_that_nobody_reads_holds_up_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the end. What finds no place in the queue is counted."""
    monkeypatch.setattr(logs, "MAX_WAITING", 3)
    monkeypatch.setattr(logs, "CLOSE_S", 0.1)
    stuck = Stuck()
    with logging_to(stuck, "info", "text"):
        async with scripted(*[Answer([b"x"])] * 10) as upstream, proxied(upstream) as proxy:
            count_dropped(proxy.app.metrics.fail_open_total.labels("log").inc)
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(10):
                    async with proxy.client.get("/v1/models") as response:
                        assert await response.read() == b"x"
                await finished(proxy, 10)
            # One is being written, three wait.
            assert proxy.metric("governor_fail_open_total", where="log") in (6, 7)
    stuck.reads.set()


def test_every_line_of_a_proxy_is_json_where_it_is_asked_for(tmp_path: Path) -> None:
    """Also that it is ready and that it stopped, which is no request's; at `warning` there is no line."""
    # The address of nothing: a port that somebody else holds, so that it answers, and with nonsense.
    import http.server

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    os.environ["GOVERNOR_SERVER__LOG_FORMAT"] = "json"
    try:
        where = f"http://127.0.0.1:{server.server_port}"
        with governor(tmp_path, "serve", "--upstream", where, "--port", "0") as proxy:
            get(proxy.ready(), "/v1/models")
            assert proxy.end(15) == 0
            lines = [json.loads(line) for line in proxy.read().splitlines()]
    finally:
        del os.environ["GOVERNOR_SERVER__LOG_FORMAT"]
        server.shutdown()
        thread.join()
        server.server_close()
    messages = [line["message"] for line in lines]
    assert messages[0].startswith("ready: base_url")
    assert messages[-1] == "stopped"
    (asked,) = [line for line in lines if "request_id" in line]
    assert (asked["status"], asked["path"]) == (501, "/v1/models")
