"""A governor in this process: the core between an agent and an upstream, without a server.

It does with an `Exchange` what the proxy does, whole responses only, and raises where the proxy fails open:
here a failure is to be seen. What comes after the delivery (labels) is done before it, so that its tokens
are counted with the message they belong to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import Any

from governor.conversation import answered_calls
from governor.exchange import Ask, Exchange, Explain, Purpose, Step
from governor.governance import Governance
from governor.records import CallRecord
from governor.request import untouched
from governor.transcript import Transcript
from governor_training.evaluation.cache import Upstream, UpstreamRefused


class Driver:
    """Answers chat requests as a governor with `governance` would; `records` has what it found out, by call
    id. Time is the number of requests so far. With `keep_transcripts`, `transcripts` has what was said, by
    conversation."""

    def __init__(self, upstream: Upstream, governance: Governance, *, keep_transcripts: bool = False) -> None:
        self._upstream, self._governance = upstream, governance
        self._clock = count()
        self._keep_transcripts = keep_transcripts
        self.records: dict[str, CallRecord] = {}
        self.transcripts: defaultdict[str, list[Transcript]] = defaultdict(list)

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        """The response with the explanation in `governor`. Raises `UpstreamRefused`, and what the policy
        raises."""
        if untouched(body) is not None:
            return _without_logprobs(await self._upstream(body))
        history = answered_calls(body["messages"])
        exchange = Exchange(
            body,
            self._governance,
            records={call.key: self.records[call.key] for call in history if call.key in self.records},
            history=history,
            conversation=conversation,
            now=float(next(self._clock)),
            explain=Explain.DECISIONS,
        )
        response = await self._delivered(exchange)
        await self._run(exchange, exchange.review())
        for error in exchange.policy_errors:
            raise error
        self.records.update((record.call_id, record) for record in exchange.records())
        if self._keep_transcripts and (said := exchange.transcript) is not None:
            self.transcripts[conversation].append(said)
        return {**_told(response), "governor": exchange.explanation()}

    async def _delivered(self, exchange: Exchange) -> Mapping[str, Any]:
        step: Step = exchange.admission()
        while isinstance(step, Ask) and step.purpose is Purpose.PROBE:
            step = await self._probe(exchange, step)
        assert isinstance(step, Ask)
        exchange.receive_response(await self._upstream(step.body))
        delivered = await self._run(exchange, exchange.finish())
        if delivered is None:
            raise UpstreamRefused(502, "the exchange ended without a body")
        return delivered

    async def _run(self, exchange: Exchange, step: Step) -> Mapping[str, Any] | None:
        while isinstance(step, Ask):
            if step.purpose in (Purpose.PROBE, Purpose.LABEL):
                step = await self._probe(exchange, step)
            else:
                exchange.receive_response(await self._upstream(step.body))
                step = exchange.finish()
        return step.body

    async def _probe(self, exchange: Exchange, ask: Ask) -> Step:
        try:
            return exchange.probe_answered(await self._upstream(ask.body))
        except UpstreamRefused as refused:
            return exchange.probe_failed(f"status_{refused.status}")


class Direct:
    """No governor: the upstream as an agent's `Chat`."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        return _without_logprobs(await self._upstream(body))


def _without_logprobs(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the cache measured for others; a run is kept, and need not keep that."""
    choices = [{**choice, "logprobs": None} for choice in response["choices"]]
    return _told({**response, "choices": choices})


def _told(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message as a client reads it, without the fields that are null: it sends them back otherwise."""
    choices = [
        {**choice, "message": {key: value for key, value in choice["message"].items() if value is not None}}
        for choice in response["choices"]
    ]
    return {**response, "choices": choices}
