"""The gates are learned beside the traffic, survive a restart, and act only while they are certified."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from governor.calls import schemas_of
from governor.decision import Mode
from governor.governance import Governance
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.standing import Standing, kept
from governor_server import gatekeeper
from governor_server.gatekeeper import Gatekeeper, sentence
from governor_server.settings import CalibrationSettings
from governor_server.shared import GATES, LEADER, Shared
from tests.server.redis_server import RedisServer
from tests.server.scripted_upstream import Answer, proxied, scripted
from tests.server.waiting import PATIENCE_S
from tests.wire.generated import Generated, chat, tool

pytest.importorskip("sklearn")

LOOKUP = ("c1", "lookup", '{"country": "Norway"}')
SCHEMA = schemas_of([tool("lookup")])["lookup"]


def record(number: int, rng: random.Random, *, informative: bool = True) -> CallRecord:
    """The only call of an observed conversation. Sure answers stay as they are, unsure ones change; where
    nothing is informative, one in three changes, whatever the signals say."""
    known = rng.random() < 0.6
    sure = known if informative else rng.random() < 0.5
    changed = not known if informative else rng.random() < 0.33
    entropy = rng.uniform(0.0, 0.05) if sure else rng.uniform(0.8, 2.0)
    before = _answer(f"It is {number}.", entropy)
    after = _answer(f"It is {number + changed}.", 0.01)
    return CallRecord(
        call_id=f"call-{number}",
        conversation=f"talk-{number}",
        tool="lookup",
        signature=f"lookup({number})",
        step=0,
        decision={"index": 0, "action": "pass", "proposed": "pass", "reason": "uncertified"},
        created=float(number),
        probe_before=before,
        probe_after=after,
        model="atlas",
        schema=SCHEMA,
        effect="read_only",
        outcome="ok",
        signals={
            "step": 0.0,
            "calls_of_tool": 0.0,
            "probe_logprob": before.logprob,
            "probe_mean_entropy": entropy,
            "probe_max_entropy": before.max_entropy,
            "probe_least_margin": before.least_margin,
            "probe_finished": 1.0,
        },
    )


def _answer(text: str, entropy: float) -> ProbeAnswer:
    return ProbeAnswer(text, True, entropy, 3 * entropy, max(0.0, 0.99 - entropy / 2), -5 * entropy, 5, 100)


def many(count: int, *, informative: bool = True) -> Sequence[CallRecord]:
    rng = random.Random(7)
    return [record(number, rng, informative=informative) for number in range(count)]


def keeper(path: Path, records: Iterable[CallRecord], **more: Any) -> Gatekeeper:
    settings = CalibrationSettings(path=str(path), **more)
    return Gatekeeper(settings, RuleSettings(), lambda: records, lambda: None, clock=lambda: 1e6)


async def test_enough_labels_make_a_gate(tmp_path: Path) -> None:
    """And it governs the model that it was learned from, and no other."""
    learned = keeper(tmp_path / "gates.json", many(1800))
    await learned.renew()
    standing = learned.standings["", "atlas"]
    assert standing.enforces, sentence(standing)
    governed = learned.governances(Governance(vocab_size=4096, mode=Mode.ENFORCE))
    assert {key: governance.mode for key, governance in governed.items()} == {("", "atlas"): Mode.ENFORCE}
    assert learned.report()["atlas"]["certificate"]["bound"] <= 0.02


async def test_signals_that_say_nothing_make_no_gate(tmp_path: Path) -> None:
    """The model is observed, and the report says why in words."""
    learned = keeper(tmp_path / "gates.json", many(1800, informative=False))
    await learned.renew()
    assert not learned.standings["", "atlas"].enforces
    governed = learned.governances(Governance(vocab_size=4096, mode=Mode.ENFORCE))
    assert governed["", "atlas"].mode is Mode.OBSERVE
    assert len(learned.report()["atlas"]["says"].split()) > 5


async def test_too_few_labels_make_no_gate(tmp_path: Path) -> None:
    """Nothing is tried, so that nothing of the budget for errors is spent."""
    learned = keeper(tmp_path / "gates.json", many(40))
    await learned.renew()
    assert learned.standings["", "atlas"].attempts == 0


@pytest.mark.parametrize("apart", [True, False])
async def test_each_tenant_has_gates_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Learned from nothing but its own records, unless the operator wants it otherwise; of one from which
    nothing was learned, nothing is kept."""
    given = []

    def renew(records: Iterable[CallRecord], standing: Standing, **_: Any) -> Standing:
        given.append({one.conversation for one in records})
        return replace(standing, attempts=1)

    monkeypatch.setattr("governor_calibration.renewal.renew", renew)
    records = many(3)
    neighbours = [replace(one, conversation=f"beta/{one.conversation}") for one in records]
    learned = keeper(tmp_path / "gates.json", [*records, *neighbours])
    learned.by_tenant = apart
    await learned.renew()
    mine, theirs = ({one.conversation for one in own} for own in (records, neighbours))
    assert given == ([mine, theirs] if apart else [mine | theirs])
    assert set(learned.standings) == ({("", "atlas"), ("beta", "atlas")} if apart else {("", "atlas")})
    learned.records = lambda: ()
    learned.standings["beta", "atlas"] = Standing()
    await learned.renew()
    assert set(learned.standings) == {("", "atlas")}


async def test_a_tenant_begins_with_the_operators_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that `governor eval` wrote, say; what it learns after that is its own."""
    path = tmp_path / "gates.json"
    shipped = Standing(attempts=3)
    path.write_bytes(orjson.dumps(kept({("", "atlas"): shipped})))
    begun: dict[tuple[str, ...], Standing] = {}

    def renew(records: Iterable[CallRecord], standing: Standing, **_: Any) -> Standing:
        begun[tuple(one.conversation for one in records)] = standing
        return replace(standing, attempts=standing.attempts + 1)

    monkeypatch.setattr("governor_calibration.renewal.renew", renew)
    (one,) = many(1)
    theirs = replace(one, conversation="beta/talk")
    learned = keeper(path, [theirs])
    learned.load()
    assert learned.standings == {("", "atlas"): shipped}
    await learned.renew()
    assert begun["beta/talk",] == shipped
    assert learned.standings["beta", "atlas"].attempts == 4


async def test_a_client_with_a_key_is_governed_by_the_operators_gate() -> None:
    """Until there is one of its own."""
    answers = [Answer.whole(Generated(content="Oslo."))] * 3
    async with scripted(*answers) as upstream, proxied(upstream, "observe") as proxy:
        acting = replace(proxy.app.proxy.governance, mode=Mode.ENFORCE)
        proxy.app.proxy.by_model = {("", "atlas"): acting}
        _, headers, _ = await proxy.chat(chat(), authorization="Bearer key-b")
        assert headers["x-governor-mode"] == "enforce"
        tenant = headers["x-governor-conversation"].split("/")[0]
        own = {(tenant, "atlas"): proxy.app.proxy.governance}
        proxy.app.proxy.by_model = {**proxy.app.proxy.by_model, **own}
        _, headers, _ = await proxy.chat(chat(), authorization="Bearer key-b")
        assert headers["x-governor-mode"] == "observe"
        _, headers, _ = await proxy.chat(chat())
        assert headers["x-governor-mode"] == "enforce"


async def test_a_gate_survives_a_restart(tmp_path: Path) -> None:
    """Or each deployment would begin with days of observing."""
    path = tmp_path / "deep" / "gates.json"
    first = keeper(path, many(1800))
    await first.renew()
    second = keeper(path, ())
    second.load()
    assert second.standings == first.standings


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"atlas": 1}', b'[{"tenant": "", "model": "x"}]', b"\xff"]
)
def test_a_file_that_cannot_be_read_is_learned_anew(tmp_path: Path, body: bytes) -> None:
    """A proxy that does not start because of a broken cache would be a worse one."""
    path = tmp_path / "gates.json"
    path.write_bytes(body)
    learned = keeper(path, ())
    learned.load()
    assert learned.standings == {}


async def test_a_disk_that_is_full_costs_no_gate(tmp_path: Path) -> None:
    """It is kept in memory."""
    (tmp_path / "file").write_text("no folder")
    learned = keeper(tmp_path / "file" / "gates.json", many(1800))
    await learned.renew()
    assert learned.standings["", "atlas"].enforces


# Several processes


@pytest.fixture
def shared(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Gatekeeper]]:
    """The keeper of another process on another machine, each time it is called."""
    opened: list[Shared] = []

    def open(records: Iterable[CallRecord] = ()) -> Gatekeeper:
        opened.append(Shared(redis_server.url))
        learned = keeper(tmp_path / f"{len(opened)}" / "gates.json", records)
        learned.shared = opened[-1].gates(60.0)
        learned.load()
        return learned

    yield open
    for each in opened:
        each.close()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Standing]:
    """The standings from which a renewal went on; each makes one more attempt."""
    begun: list[Standing] = []

    def renew(_: Iterable[CallRecord], standing: Standing, **__: Any) -> Standing:
        begun.append(standing)
        return replace(standing, attempts=standing.attempts + 1)

    monkeypatch.setattr("governor_calibration.renewal.renew", renew)
    return begun


async def test_what_one_process_learns_governs_all(shared: Callable[..., Gatekeeper]) -> None:
    """Also those that begin later, with a file of their own or none."""
    one, other = shared(many(1800)), shared(many(3))
    await one.renew()
    assert one.standings["", "atlas"].enforces
    changes: list[int] = []
    other.changed = lambda: changes.append(1)
    await other.renew()
    assert other.standings == one.standings == shared().standings
    await other.renew()
    assert len(changes) == 1


async def test_one_process_makes_the_gates(
    shared: Callable[..., Gatekeeper], counted: list[Standing], redis_server: RedisServer
) -> None:
    """The attempts share a budget of errors: a second process would spend it twice. The next goes on where
    the one before stopped, whether that one ended or was lost."""
    one, two, three = (shared(many(1)) for _ in range(3))
    for _ in range(3):
        await one.renew()
        await two.renew()
    assert [standing.attempts for standing in counted] == [0, 1, 2]
    one.close()
    await two.renew()
    await three.renew()
    assert [standing.attempts for standing in counted] == [0, 1, 2, 3]
    assert 0 < redis_server.client.pttl(LEADER) <= 60_000
    redis_server.client.delete(LEADER)  # As its end of time does.
    await three.renew()
    await two.renew()
    assert [standing.attempts for standing in counted] == [0, 1, 2, 3, 4]
    assert two.standings == three.standings


async def test_a_leader_that_was_too_slow_changes_nothing(
    shared: Callable[..., Gatekeeper], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another took its place meanwhile, and has gone on from the same standing."""

    def renew(_: Iterable[CallRecord], standing: Standing, **__: Any) -> Standing:
        redis_server.client.set(LEADER, "another")
        return replace(standing, attempts=7)

    monkeypatch.setattr("governor_calibration.renewal.renew", renew)
    slow = shared(many(1))
    await slow.renew()
    assert slow.standings == {}
    assert redis_server.client.get(GATES) is None
    slow.close()
    assert redis_server.client.get(LEADER) == b"another"


async def test_the_operators_file_is_every_processes(
    shared: Callable[..., Gatekeeper], tmp_path: Path, counted: list[Standing]
) -> None:
    """A gate that `governor eval` wrote reaches those without such a file, unless Redis has a later one."""
    (tmp_path / "1").mkdir()
    shipped = Standing(attempts=3)
    (tmp_path / "1" / "gates.json").write_bytes(orjson.dumps(kept({("", "atlas"): shipped})))
    one = shared()
    assert one.standings == {("", "atlas"): shipped}
    await one.renew()
    assert shared().standings == one.standings == {("", "atlas"): Standing(attempts=4)}


@pytest.mark.parametrize("body", [b"", b"{", b'[{"tenant": "", "model": "x"}]', b"\xff"])
async def test_gates_in_redis_that_cannot_be_read_are_learned_anew(
    shared: Callable[..., Gatekeeper], redis_server: RedisServer, counted: list[Standing], body: bytes
) -> None:
    """And are there to be read again."""
    redis_server.client.set(GATES, body)
    one = shared(many(1))
    assert one.standings == {}
    await one.renew()
    assert shared().standings == one.standings == {("", "atlas"): Standing(attempts=1)}


async def test_without_redis_no_gate_is_made_and_harm_ends_one(
    shared: Callable[..., Gatekeeper],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What is in force stays, but a process that sees the harm does not wait for Redis."""
    one, other = shared(many(1800)), shared(many(1800))
    await one.renew()
    redis_server.kill()
    await other.renew()
    assert other.standings == {}
    certified = dict(one.standings)
    await one.renew()
    assert one.standings == certified
    monkeypatch.setattr(gatekeeper, "lapse", lambda gate, records: "It did harm." if len(records) else None)
    await one.renew()
    assert one.standings["", "atlas"].lapsed == "It did harm."
    assert one.governances(Governance(vocab_size=9, mode=Mode.ENFORCE))["", "atlas"].mode is Mode.OBSERVE
    assert not (tmp_path / "2" / "gates.json").exists()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_proxy_observes_until_it_may_act(tmp_path: Path, stream: bool) -> None:
    """The same sure call passes at first; once enough calls were labelled it is answered instead, without a
    restart."""
    calling, probe = Generated(calls=[LOOKUP]), Answer.whole(Generated(content="It is Oslo.", sure=0.999))
    answer = Answer.stream(calling) if stream else Answer.whole(calling)
    calibration = {"path": str(tmp_path / "gates.json"), "renew_s": 0.1}
    governance = {"policy": "calibrated"}
    async with (
        scripted(answer, probe, answer, probe) as upstream,
        proxied(upstream, governance=governance, calibration=calibration) as proxy,
    ):
        body = chat(stream=stream)
        _, headers, said = await proxy.chat(body)
        assert headers["x-governor-mode"] == "observe"
        assert b"lookup" in said
        for known in many(1800):
            proxy.app.store.put(known)
        async with asyncio.timeout(PATIENCE_S):
            while not (await _gates(proxy)).get("atlas", {}).get("enforces"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        _, headers, said = await proxy.chat(body)
        assert headers["x-governor-mode"] == "enforce"
        assert proxy.metric("governor_gate_enforces", model="atlas") == 1
        assert 0 < proxy.metric("governor_gate_harm_bound", model="atlas") <= 0.02
        assert b"It is Oslo." in said
        assert b"tool_calls" not in said.replace(b'"finish_reason":"tool_calls"', b"")


async def _gates(proxy: Any) -> dict[str, Any]:
    async with proxy.client.get("/governor/gates") as response:
        answer: dict[str, Any] = orjson.loads(await response.read())
        return answer


async def test_a_gate_of_an_earlier_version_only_observes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its promise was found on calls in another order, so that it is not kept: each start tells that, the
    attempts count on, and only conversations that begin from now on certify another; also where the proxy is
    started again meanwhile."""
    path = tmp_path / "gates.json"
    learned = keeper(path, many(1800))
    await learned.renew()
    attempts = learned.standings["", "atlas"].attempts
    stored = orjson.loads(path.read_bytes())
    stored[0]["standing"]["gate"]["format"] = 1
    path.write_bytes(orjson.dumps(stored))
    updated = keeper(path, many(1800))
    updated.load()
    standing = updated.standings["", "atlas"]
    assert (standing.enforces, standing.attempts, standing.since) == (False, attempts, 1e6)
    assert "earlier version" in updated.report()["atlas"]["says"]
    governed = updated.governances(Governance(vocab_size=4096, mode=Mode.ENFORCE))
    assert governed["", "atlas"].mode is Mode.OBSERVE
    assert len([text for text in caplog.messages if "not in force" in text]) == 1
    await updated.renew()
    assert not updated.standings["", "atlas"].enforces
    later = keeper(path, many(1800))
    later.clock = lambda: 2e6
    later.load()
    assert later.standings["", "atlas"].since == 1e6
    later.records = lambda: [replace(each, created=each.created + 1e6) for each in many(3600)]
    await later.renew()
    assert later.standings["", "atlas"].enforces
    assert later.standings["", "atlas"].attempts == attempts + 1
