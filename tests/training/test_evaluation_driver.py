"""The governor in this process does what a real one does, and the cache cannot be told from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.experiment import Experiment
from governor.governance import Governance
from governor.labels import Label
from governor.policies import ObservePolicy, Policy, ThresholdPolicy
from governor.policies.cap import CapPolicy
from governor_training.agent import Agent, Run
from governor_training.evaluation.cache import Answers, CachingUpstream, HttpUpstream, UpstreamRefused
from governor_training.evaluation.driver import Direct, Driver
from governor_training.evaluation.sweep import governed, measuring
from tests.server.scripted_upstream import ABORT, Answer, scripted
from tests.training.toy import Toy, ToyModel
from tests.wire.generated import Generated

BASE = Governance(vocab_size=128, catalog=ToolCatalog(("fetch",), ("save",)))


async def play(policy: Policy, number: int, *, saves: bool = False) -> Run:
    toy = Toy(saves)
    return await Agent(Driver(ToyModel(), governed(BASE, policy)), toy).ask(toy.task(number))


async def test_a_call_whose_answer_is_known_is_withheld() -> None:
    """The forced answer is the answer, and its tokens are counted."""
    run = await play(ThresholdPolicy(), 2)
    assert (run.calls, run.answer, run.correct) == ([], "2", True)
    assert [(d["action"], d["reason"]) for d in run.decisions] == [("answer", "confident_answer")]
    assert run.own_tokens == {"probe_prompt": 10, "probe_completion": 1}
    assert run.tokens["prompt"] == 20


async def test_a_call_that_is_needed_passes_and_its_repeat_does_not() -> None:
    """3 is not known: the first fetch passes. The history of the conversation is kept between requests."""
    run = await play(ThresholdPolicy(), 3)
    assert ([call.result for call in run.calls], run.correct) == (["3"], True)
    assert [d["reason"] for d in run.decisions] == ["uncertain_answer", "repeated_call"]


async def test_what_has_an_effect_is_never_withheld() -> None:
    """Not even by a cap of none; and the notice lets the model go on to it."""
    run = await play(CapPolicy(calls=0), 2, saves=True)
    assert [call.name for call in run.calls] == ["save"]
    assert {d["tool"]: d["action"] for d in run.decisions} == {"fetch": "notice", "save": "pass"}
    assert run.correct
    assert run.own_tokens["continuation_prompt"] > 0


async def test_observing_labels_every_call_and_changes_nothing() -> None:
    """The labels are what the pair of forced answers says, and a record is found by the call's id."""
    toy = Toy()
    driver = Driver(ToyModel(), measuring(BASE))
    agent, bare = Agent(driver, toy), Agent(ToyModel(), toy)
    labels = {}
    for number in (1, 2):
        run, free = await agent.ask(toy.task(number)), await bare.ask(toy.task(number))
        assert (run.answer, run.calls[0].result) == (free.answer, free.calls[0].result)
        assert run.tokens["prompt"] > free.tokens["prompt"]
        labels[number] = driver.records[run.calls[0].id].label
        # One toy serves both, and its ids are the same in each conversation.
        driver.records.clear()
    assert labels == {1: Label.USEFUL, 2: Label.LOW_VALUE}


async def test_a_refused_probe_lets_the_call_pass() -> None:
    """As in the proxy; a refused request of the agent's own is an error."""

    async def no_probes(body: Mapping[str, Any]) -> Mapping[str, Any]:
        if body.get("tool_choice") == "none":
            raise UpstreamRefused(400, "no")
        return await ToyModel()(body)

    async def nothing(body: Mapping[str, Any]) -> Mapping[str, Any]:
        raise UpstreamRefused(500, "no")

    toy = Toy()
    governance = governed(BASE, ThresholdPolicy())
    run = await Agent(Driver(no_probes, governance), toy).ask(toy.task(2))
    assert [d["reason"] for d in run.decisions] == ["probe_failed"]
    with pytest.raises(UpstreamRefused, match="status 500"):
        await Agent(Driver(nothing, governance), toy).ask(toy.task(2))


async def test_a_policy_that_fails_is_seen() -> None:
    """The proxy would let the call pass and count it; a sweep of wrong figures must not come out."""

    class Broken(ObservePolicy):
        def judge(self, evidence: object) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await play(Broken(), 2)


async def test_the_cache_asks_once() -> None:
    """Also for requests that come at the same time, and whatever the ids in the history."""
    model = ToyModel()
    cache = CachingUpstream(model)
    toy = Toy()
    agent = Agent(Direct(cache), toy)
    runs = await asyncio.gather(*(agent.ask(toy.task(3)) for _ in range(5)))
    assert [run.answer for run in runs] == ["3"] * 5
    assert (cache.served, cache.asked, len(model.asked)) == (15, 3, 3)
    assert len({call.id for run in runs for call in run.calls}) == 10
    assert len({run.tokens["prompt"] for run in runs}) == 1


async def test_a_governed_run_shares_its_requests_with_an_ungoverned_one() -> None:
    """Measuring is asked for either way, so that only the probe is new."""
    cache = CachingUpstream(ToyModel())
    toy = Toy()
    await Agent(Direct(cache), toy).ask(toy.task(2))
    asked = cache.asked
    await Agent(Driver(cache, governed(BASE, ThresholdPolicy())), toy).ask(toy.task(2))
    assert cache.asked == asked + 1


async def test_what_is_drawn_at_random_is_not_remembered() -> None:
    """Each sample is a new one."""
    cache = CachingUpstream(ToyModel())
    toy = Toy()
    agent = Agent(Direct(cache), toy, temperature=1.0, seed=1)
    await agent.ask(toy.task(2))
    await agent.ask(toy.task(2))
    assert cache.asked == cache.served == 4


async def test_a_failure_is_not_remembered() -> None:
    """And all who waited for it get it."""
    failing = [True]

    async def flaky(body: Mapping[str, Any]) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        if failing[0]:
            raise UpstreamRefused(503, "later")
        return await ToyModel()(body)

    cache = CachingUpstream(flaky)
    body = {"model": "toy", "temperature": 0, "messages": [{"role": "user", "content": "Number 2?"}]}
    both = await asyncio.gather(cache(body), cache(body), return_exceptions=True)
    assert [type(one) for one in both] == [UpstreamRefused] * 2
    failing[0] = False
    assert (await cache(body))["choices"]


def test_the_settings_of_a_sweep_act_on_everyone() -> None:
    """No lots are drawn: a policy is compared, not a deployment of it."""
    base = replace(BASE, experiment=Experiment(holdout=0.5, exploration=0.5, labels=0.5))
    governance = governed(base, ThresholdPolicy())
    assert governance.mode is Mode.ENFORCE
    assert governance.experiment == Experiment()


async def test_what_an_earlier_process_asked_is_not_asked_again(tmp_path: Path) -> None:
    """An evaluation of an hour that breaks off in the last minute costs a minute."""
    body = {"model": "toy", "temperature": 0, "messages": [{"role": "user", "content": "Number 2?"}]}
    path = tmp_path / "deep" / "answers.db"
    first, second = (CachingUpstream(ToyModel(), kept=Answers(path)) for _ in range(2))
    assert await first(body) == await second(body)
    assert (first.asked, second.asked) == (1, 0)


async def test_a_connection_that_is_gone_is_opened_again() -> None:
    """A server closes what was idle, and a sweep that thinks for seconds learns it with the next request."""
    gone = Answer(before=[ABORT])
    answers = [gone, Answer.whole(Generated(content="Oslo")), gone, gone, gone]
    async with scripted(*answers) as upstream, HttpUpstream(upstream.url) as http:
        answer = await http({"messages": []})
        assert answer["choices"][0]["message"]["content"] == "Oslo"
        with pytest.raises(UpstreamRefused, match="no answer from upstream"):
            await http({"messages": []})
