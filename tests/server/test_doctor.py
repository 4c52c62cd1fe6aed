"""What `governor doctor` says about servers that lack one thing or another."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.request import Json
from governor_server import examination
from governor_server.cli import main
from governor_server.diagnosis import TIERS, Diagnosis, Finding, Prospect, Result
from governor_server.evidence import Answer
from governor_server.examination import Examination
from governor_server.settings import Settings
from governor_server.upstream import UpstreamError
from tests.wire.generated import Generated, stream_bytes
from tests.wire.recorded import Recorded, recorded

OK, WARN, MISSING, SKIPPED = Result.OK, Result.WARN, Result.MISSING, Result.SKIPPED
CALL = recorded("chat_tools_auto")
SAMPLE = {"messages": CALL.request["messages"], "tools": CALL.request["tools"]}
MARKER = "<tool_call>"


@dataclass
class Server:
    """vLLM as it was recorded, except for what it `lacks`; `max_logprobs` is its flag of that name."""

    lacks: frozenset[str] = frozenset()
    max_logprobs: int = 20
    key: str | None = None
    asked: list[Json] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Json | None) -> Answer:
        return self.answer(method, path, body)

    def answer(self, method: str, path: str, body: Json | None, key: str | None = None) -> Answer:
        if path == "/health":
            return Answer(200, b"")
        if self.key is not None and key != f"Bearer {self.key}":
            return _json({"error": "Unauthorized"}, 401)
        if path == "/v1/models":
            return _json({"object": "list", "data": [{"id": "tiny", "max_model_len": 2048}]})
        if path == "/version" and "version" not in self.lacks:
            return _json({"version": "0.32.0"})
        if path == "/metrics" and "metrics" not in self.lacks:
            hits = 256.0 * len([one for one in self.asked if one.get("tool_choice") == "none"])
            return Answer(200, f'# HELP\nvllm:prefix_cache_hits_total{{engine="0"}} {hits}\n'.encode())
        if path == "/tokenize" and "tokenize" not in self.lacks:
            return _json({"count": 1, "max_model_len": 2048, "tokens": [8]})
        if path != "/v1/chat/completions" or body is None:
            return _json({"detail": "Not Found"}, 404)
        self.asked.append(body)
        return self._chat(body)

    def _chat(self, body: Json) -> Answer:
        if body.get("top_logprobs", 0) > self.max_logprobs:
            message = (
                f"Requested sample logprobs of {body['top_logprobs']}, which is greater than max allowed"
            )
            return _json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
        if body.get("tool_choice") == "auto" and "parser" in self.lacks:
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return _json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
        if body.get("stream"):
            streamed = recorded("chat_tools_auto_stream").body
            plain = stream_bytes(Generated("Hello.").chunks(usage="usage" not in self.lacks))
            return Answer(200, streamed if "tools" in body else plain)
        return self._without_logprobs(self._generated(body), body)

    def _generated(self, body: Json) -> Any:
        if "tools" not in body:
            if "logit_bias" in body and "bans" not in self.lacks:
                return Generated(MARKER).response()
            if "bad_words" in body and "bans" not in self.lacks:
                return Generated("Well.").response()
            return recorded("chat_plain").response
        if body.get("tool_choice") == "none":
            name = "chat_tools_none" if "bans" in self.lacks else "chat_after_tool_none"
            return self._without_details(recorded(name).response)
        if "calls" in self.lacks:
            return recorded("chat_plain").response
        return recorded("chat_tools_none" if "parsing" in self.lacks else "chat_tools_auto").response

    def _without_details(self, response: Any) -> Any:
        if "details" in self.lacks:
            response["usage"]["prompt_tokens_details"] = None
        if "cache" in self.lacks:
            response["usage"]["prompt_tokens_details"]["cached_tokens"] = 16
        return response

    def _without_logprobs(self, response: Any, body: Json) -> Answer:
        if "logprobs" in self.lacks or not body.get("logprobs"):
            response["choices"][0]["logprobs"] = None
        return _json(response)


def _json(body: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(body).encode())


async def diagnosed(server: Server, **options: Any) -> Diagnosis:
    options.setdefault("sample", SAMPLE)
    examined = Examination(server.ask, options.pop("settings", Settings()), **options)
    return Diagnosis("http://upstream", await examined.findings())


def finding(diagnosis: Diagnosis, check: str) -> Finding:
    return next(finding for finding in diagnosis.findings if finding.check == check)


def prospects(diagnosis: Diagnosis) -> list[str]:
    return [str(diagnosis.prospect(tier)) for tier in TIERS]


async def test_a_vllm_with_all_flags_carries_every_tier() -> None:
    diagnosis = await diagnosed(Server())
    assert {one.check: one.seen for one in diagnosis.findings if one.result is not OK} == {}
    assert prospects(diagnosis) == ["yes"] * 4
    assert diagnosis.exit_code == 0
    assert diagnosis.fixes == ()
    assert "256 of 274" in finding(diagnosis, "prefix cache").seen
    assert "Cairo" in finding(diagnosis, "forced answer").seen


async def test_without_logprobs_only_the_rules_work() -> None:
    diagnosis = await diagnosed(Server(frozenset({"logprobs"})))
    assert finding(diagnosis, "logprobs").result is MISSING
    assert prospects(diagnosis) == ["yes", "no", "no", "no"]
    assert diagnosis.exit_code == 1
    assert "logprobs" in diagnosis.fixes[0]


@pytest.mark.parametrize("allowed", [1, 5, 19])
async def test_the_largest_accepted_number_of_logprobs_is_found(allowed: int) -> None:
    """And what is examined after it asks for no more, so that one fault is one finding."""
    server = Server(max_logprobs=allowed)
    diagnosis = await diagnosed(server)
    missing = [one.check for one in diagnosis.findings if one.result is MISSING]
    assert missing == ["top_logprobs"]
    assert f"at most {allowed} accepted" in finding(diagnosis, "top_logprobs").seen
    assert "--max-logprobs 20" in diagnosis.fixes[0]
    assert f"governance.top_logprobs: {allowed}" in diagnosis.fixes[0]
    settings = Settings.load(None, {"governance": {"top_logprobs": allowed}}, {})
    assert (await diagnosed(Server(max_logprobs=allowed), settings=settings)).exit_code == 0


async def test_a_server_that_allows_no_logprobs_is_told_its_flag() -> None:
    """vLLM's `--max-logprobs 0`: the flag stands in what to do."""
    diagnosis = await diagnosed(Server(max_logprobs=0))
    assert finding(diagnosis, "logprobs").result is MISSING
    assert "--max-logprobs 20" in diagnosis.fixes[0]


@pytest.mark.parametrize(
    ("refuses", "result", "fix"),
    [
        ("request", MISSING, "`logprobs` and `top_logprobs` beside `tools`"),
        ("answer", WARN, "governance.action: notice"),
        ("continuation", WARN, "governance.action: answer"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_server_refuses_of_what_is_added_is_told(
    refuses: str, result: Result, fix: str, streamed: bool
) -> None:
    """By name, and with what to change: each of them is fine alone, and refused in this combination only."""

    class Picky(Server):
        def _chat(self, body: Json) -> Answer:
            kind = "request" if body.get("tool_choice") is None else "answer"
            kind = "continuation" if len(body["messages"]) > len(SAMPLE["messages"]) else kind
            agents = "tools" in body and body.get("logprobs") and body.get("max_tokens") == 8
            if agents and kind == refuses and bool(body.get("stream")) is streamed:
                return _json({"error": {"message": "not this"}}, 403)
            return super()._chat(body)

    found = finding(diagnosis := await diagnosed(Picky()), "additions")
    assert (found.result, found.seen) == (result, f"refused: {refuses} (status 403: not this)")
    assert any(fix in told for told in diagnosis.fixes)


@pytest.mark.parametrize(
    ("lack", "seen"), [("parser", "--tool-call-parser to be set"), ("parsing", "the call stands in the text")]
)
async def test_a_missing_tool_parser_is_told_with_its_flags(lack: str, seen: str) -> None:
    """vLLM without one refuses the request; with one for another family it leaves the call in the text."""
    diagnosis = await diagnosed(Server(frozenset({lack})))
    assert seen in finding(diagnosis, "tool calls").seen
    assert "--enable-auto-tool-choice --tool-call-parser hermes" in diagnosis.fixes[0]
    assert prospects(diagnosis) == ["no"] * 4
    assert diagnosis.exit_code == 1


async def test_a_model_that_just_answers_is_not_called_broken() -> None:
    """The tiers that rest on calls are then unproven, and the exit code is that of success."""
    diagnosis = await diagnosed(Server(frozenset({"calls"})))
    assert finding(diagnosis, "tool calls").seen.startswith("not seen: ")
    assert finding(diagnosis, "logprobs of calls").result is SKIPPED
    assert prospects(diagnosis) == ["probably"] * 4
    assert diagnosis.exit_code == 0
    assert "The request of --tools" in diagnosis.fixes[0]


async def test_a_sample_is_asked_for_only_where_none_was_given() -> None:
    """Who has given one needs other advice than to give one."""
    own = await diagnosed(Server(frozenset({"calls"})))
    bundled = await diagnosed(Server(frozenset({"calls"})), sample=examination.SAMPLE)
    assert any("with --tools FILE" in fix for fix in bundled.fixes)
    assert not any("with --tools FILE" in fix for fix in own.fixes)


@pytest.mark.parametrize("lacks", [{"bans"}, {"bans", "tokenize"}])
async def test_a_ban_that_is_ignored_rules_the_probe_out(lacks: set[str]) -> None:
    """By token and by text."""
    diagnosis = await diagnosed(Server(frozenset(lacks)))
    assert "is ignored" in finding(diagnosis, "call ban").seen
    forced = finding(diagnosis, "forced answer")
    assert forced.result is MISSING
    assert forced.meaning == "The model called a tool although the call was banned."
    assert prospects(diagnosis) == ["yes", "yes", "no", "no"]
    assert diagnosis.exit_code == 1


async def test_without_a_tokenizer_the_ban_by_text_is_tried() -> None:
    diagnosis = await diagnosed(Server(frozenset({"tokenize"})))
    assert finding(diagnosis, "call start token").result is WARN
    assert finding(diagnosis, "call ban").seen == "bad_words is honoured"
    assert prospects(diagnosis)[2] == "yes"


@pytest.mark.parametrize(
    ("lacks", "result", "seen"),
    [
        ({"cache"}, WARN, "16 of 274"),
        ({"details"}, OK, "256 of 274 prompt tokens from the cache (/metrics"),
        ({"details", "metrics"}, WARN, "uncertain"),
    ],
)
async def test_the_prefix_cache_is_looked_for_where_the_server_tells(
    lacks: set[str], result: Result, seen: str
) -> None:
    """It decides what a probe costs, not whether it works."""
    diagnosis = await diagnosed(Server(frozenset(lacks)))
    assert finding(diagnosis, "prefix cache").result is result
    assert seen in finding(diagnosis, "prefix cache").seen
    assert diagnosis.exit_code == 0


async def test_reasoning_that_goes_on_in_the_probe_is_told() -> None:
    class Reasoning(Server):
        def _generated(self, body: Json) -> Any:
            response = super()._generated(body)
            response["choices"][0]["message"]["reasoning"] = "Let me see."
            return response

    diagnosis = await diagnosed(Reasoning())
    assert finding(diagnosis, "reasoning off").result is WARN
    assert any("probe.chat_template_kwargs" in fix for fix in diagnosis.fixes)


async def test_a_garbled_call_is_the_models_fault() -> None:
    """No parser could read it, so that a flag for one would be the wrong advice."""

    class Garbling(Server):
        def _generated(self, body: Json) -> Any:
            response = super()._generated(body)
            if body.get("tool_choice") == "auto":
                message = response["choices"][0]["message"]
                message["content"], message["tool_calls"] = '<tool_call>\n{"name": "a"}}\n</tool_call>', []
            return response

    diagnosis = await diagnosed(Garbling())
    assert finding(diagnosis, "tool calls").result is WARN
    assert not any("--tool-call-parser" in fix for fix in diagnosis.fixes)


async def test_reasoning_in_the_text_is_told_with_the_flag_of_its_parser() -> None:
    class Unparsed(Server):
        def _generated(self, body: Json) -> Any:
            response = super()._generated(body)
            if body.get("tool_choice") == "auto":
                response["choices"][0]["message"]["content"] = "<think>Let me see.</think>"
            return response

    diagnosis = await diagnosed(Unparsed())
    assert finding(diagnosis, "reasoning off").result is WARN
    assert any("--reasoning-parser" in fix for fix in diagnosis.fixes)


async def test_fewer_logprobs_than_asked_are_told() -> None:
    """A gateway may cut the list without a word."""

    class Cutting(Server):
        def _generated(self, body: Json) -> Any:
            response = super()._generated(body)
            for token in response["choices"][0]["logprobs"]["content"]:
                token["top_logprobs"] = token["top_logprobs"][:5]
            return response

    assert finding(await diagnosed(Cutting()), "top_logprobs").seen == "20 asked, 5 came"


async def test_a_forced_answer_that_does_not_end_leaves_the_probe_unproven() -> None:
    """Another question may have a shorter answer."""

    class Chatty(Server):
        def _generated(self, body: Json) -> Any:
            response = super()._generated(body)
            if body.get("tool_choice") == "none":
                response["choices"][0]["finish_reason"] = "length"
            return response

    diagnosis = await diagnosed(Chatty())
    assert "not ended" in finding(diagnosis, "forced answer").seen
    assert prospects(diagnosis) == ["yes", "yes", "probably", "probably"]
    assert diagnosis.exit_code == 0


async def test_a_stream_that_loses_the_tokens_of_calls_is_told() -> None:
    """Some versions send no chunk for what the tool parser takes."""

    class Losing(Server):
        def _chat(self, body: Json) -> Answer:
            if body.get("stream") and "tools" in body:
                chunks = recorded("chat_tools_auto_stream").chunks
                for chunk in chunks[2:]:
                    for choice in chunk["choices"]:
                        choice["logprobs"] = None
                return Answer(200, stream_bytes(chunks))
            return super()._chat(body)

    diagnosis = await diagnosed(Losing())
    assert finding(diagnosis, "streamed logprobs").result is MISSING
    assert prospects(diagnosis) == ["yes", "no", "yes", "yes"]


async def test_a_server_that_breaks_off_in_the_middle_is_a_finding() -> None:
    class Breaking(Server):
        async def ask(self, method: str, path: str, body: Json | None) -> Answer:
            if body is not None and "tools" in body:
                raise UpstreamError("broken", "upstream broke the connection")
            return await super().ask(method, path, body)

    diagnosis = await diagnosed(Breaking())
    assert finding(diagnosis, "tool calls").seen == "upstream broke the connection"
    assert finding(diagnosis, "chat").result is OK


@pytest.mark.parametrize(
    "error",
    ["err_model", "err_too_long", "err_badjson_type", "err_top_logprobs_nolog", "err_toolchoice_notools"],
)
def test_a_refusal_is_told_in_the_servers_own_words(error: str) -> None:
    recording: Recorded = recorded(error)
    complaint = Answer(recording.status, recording.body).complaint
    told = recording.response["error"]["message"].split("\n")[0][:60]
    assert complaint.startswith(f"status {recording.status}: {told}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.data())
def test_no_answer_of_whatever_shape_is_a_crash(data: st.DataObject) -> None:
    """In each answer of one server, some part is something else."""

    class Odd(Server):
        async def ask(self, method: str, path: str, body: Json | None) -> Answer:
            answer = await super().ask(method, path, body)
            if answer.json is None or not data.draw(st.booleans()):
                return answer
            spoilt = json.loads(answer.body)
            return _json(_spoil(spoilt, data), answer.status)

    diagnosis = asyncio.run(diagnosed(Odd()))
    assert len(diagnosis.findings) == 18
    assert diagnosis.as_text()
    assert json.dumps(diagnosis.as_dict())


def _spoil(value: Any, data: st.DataObject) -> Any:
    """The value with some part of it replaced."""
    if not isinstance(value, list | dict) or not value or data.draw(st.integers(0, 5)) == 0:
        return data.draw(JSON)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys))
    value[key] = _spoil(value[key], data)
    return value


@cache
def checks() -> tuple[str, ...]:
    return tuple(one.check for one in asyncio.run(diagnosed(Server())).findings)


RESULTS = st.lists(st.sampled_from(Result), min_size=18, max_size=18)


def with_results(results: list[Result]) -> Diagnosis:
    found = [
        Finding(check, result, "seen", fix=f"fix {check}")
        for check, result in zip(checks(), results, strict=True)
    ]
    return Diagnosis("http://upstream", tuple(found))


@given(RESULTS)
def test_a_tier_works_only_if_nothing_that_it_needs_is_missing(results: list[Result]) -> None:
    """And the exit code is about the first three, and a tier that works surely has nothing unproven."""
    diagnosis = with_results(results)
    found = diagnosis.findings
    for tier in TIERS:
        needed = [one.result for one in found if one.check in tier.needs]
        assert len(needed) == len(tier.needs)
        assert (diagnosis.prospect(tier) is Prospect.NO) == (MISSING in needed)
        assert (diagnosis.prospect(tier) is Prospect.YES) == (set(needed) == {OK})
    assert diagnosis.exit_code == int("no" in prospects(diagnosis)[:3])


@given(RESULTS)
def test_what_is_missing_is_put_right_first_and_the_lowest_tier_before_others(results: list[Result]) -> None:
    diagnosis = with_results(results)
    missing = [one.check for one in diagnosis.findings if one.result is MISSING]
    first = [fix.removeprefix("fix ") for fix in diagnosis.fixes[: len(missing)]]
    assert set(first) == set(missing)
    of_rules = [check in TIERS[0].needs for check in first]
    assert of_rules == sorted(of_rules, reverse=True)


# The command


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any configuration file."""
    monkeypatch.chdir(tmp_path)


@contextmanager
def served(server: Server | bytes) -> Iterator[str]:
    """The address of `server`, or of one that answers everything with that page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: Json | None) -> None:
            key = self.headers["authorization"]
            if isinstance(server, bytes):
                answer = Answer(200, server)
            else:
                answer = server.answer(self.command, self.path, body, key)
            self.send_response(answer.status)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def sample(tmp_path: Path) -> str:
    (tmp_path / "request.json").write_text(json.dumps(SAMPLE))
    return "request.json"


def test_the_report_names_every_check_tier_and_fix(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In lines that fit, with the columns of the table aligned."""
    with served(Server(frozenset({"tokenize"}), max_logprobs=5)) as url:
        assert main(["doctor", "--upstream", f"{url}/v1", "--tools", sample]) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    column = lines[0].index("result")
    assert {line[column:].split()[0] for line in lines[1:18] if line[0] != " "} <= set(Result)
    assert "tier 0  rules            yes" in text
    assert "tier 1  stream signals   no " in text
    assert "1. Start vLLM with --max-logprobs 20" in text


def test_the_report_for_machines_holds_the_same(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Server()) as url:
        assert main(["doctor", "--upstream", url, "--tools", sample, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["upstream"] == url
    assert [tier["works"] for tier in report["tiers"]] == ["yes"] * 4
    assert {check["result"] for check in report["checks"]} == {"ok"}


def test_a_key_is_asked_for_and_sent(
    sample: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, or from where `governor serve` has it."""
    with served(Server(key="secret")) as url:
        command = ["doctor", "--upstream", url, "--tools", sample]
        assert main(command) == 1
        assert "--api-key" in capsys.readouterr().out
        assert main([*command, "--api-key", "secret"]) == 0
        monkeypatch.setenv("GOVERNOR_UPSTREAM__API_KEY", "secret")
        assert main(command) == 0
        assert "secret" not in capsys.readouterr().out


def test_another_model_than_the_served_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with served(Server()) as url:
        assert main(["doctor", "--upstream", url, "--model", "big"]) == 1
    assert "big is not among the served: tiny" in capsys.readouterr().out


def test_a_page_of_html_is_no_api(capsys: pytest.CaptureFixture[str]) -> None:
    with served(b"<html><title>Welcome to nginx</title>\x1b[31m</html>") as url:
        assert main(["doctor", "--upstream", url]) == 1
    text = capsys.readouterr().out
    assert "Welcome to nginx" in text
    assert "\x1b" not in text
    assert "it is no OpenAI-compatible server" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "nothing to examine: give --upstream"),
        (["--upstream", "http://127.0.0.1:9"], "http://127.0.0.1:9 is unreachable"),
        (["--upstream", "ftp://a"], "upstream.url"),
        (["--upstream", "http://a:b"], "http://a:b"),
        (["--upstream", "http://a", "--timeout", "soon"], "read_timeout_s"),
        (["--upstream", "http://a", "--tools", "nowhere.json"], "cannot read nowhere.json"),
        (["--upstream", "http://a", "--tools", "text.json"], "text.json is no JSON"),
        (["--upstream", "http://a", "--tools", "empty.json"], "must hold a list of tools"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_where_nothing_was_examined_the_exit_code_is_two(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.json").write_text("tools")
    (tmp_path / "empty.json").write_text("[]")
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert part in lines[-1]
    assert all(line.startswith("governor: ") for line in lines)


def test_a_list_of_tools_alone_can_be_tried(tmp_path: Path) -> None:
    """The model is then asked to call the first."""
    (tmp_path / "tools.json").write_text(json.dumps(SAMPLE["tools"]))
    server = Server()
    with served(server) as url:
        assert main(["doctor", "--upstream", url, "--tools", "tools.json"]) == 0
    asked = [one for one in server.asked if one.get("tool_choice") == "auto"]
    assert "get_weather" in asked[0]["messages"][0]["content"]
    assert asked[0]["tools"] == SAMPLE["tools"]
