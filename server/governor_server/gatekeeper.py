"""Keeps the calibrated gates: fits them anew beside the traffic, remembers them, and puts them in force.

While a model has no certificate, its conversations are only observed, whatever the configured mode: that is
what a gate learns from. The fit needs scikit-learn (the extra `calibration`); without it a gate that was
made elsewhere is still used, and none is made.

Of several processes that share their state one leads: it alone makes gates, from the records of all, and
the others take them over. So the budget of errors is spent once, and whoever comes after a leader that died
goes on where that one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from governor.decision import Mode
from governor.drift import lapse
from governor.errors import GovernorError
from governor.governance import Governance
from governor.policies.calibrated import CalibratedPolicy
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.standing import OUTDATED, Key, Standing, kept, restored, told
from governor_server import extras
from governor_server.settings import CalibrationSettings
from governor_server.shared import SharedGates
from governor_server.tenants import tenant_of

CALIBRATED: Final = "calibrated"
"""The name of the policy that has a gatekeeper."""
NOTHING_YET: Final = "No gate was fitted yet: too few calls are labelled."

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gatekeeper:
    """The standings of all models, by tenant and the name that requests give the model.

    The gate of the tenant "" is the operator's: every other tenant begins with it, and goes on from its own
    records. `by_tenant` False: all tenants are learned from, and governed, alike, under the tenant "".
    `records` gives what is to be learned from; `changed` is called on the event loop when a standing is
    another one. Renewals run in a thread, one at a time. `shared` is where other processes find the gates;
    while it cannot be reached no gate is made, and one that does harm is still given up.
    """

    settings: CalibrationSettings
    rules: RuleSettings
    records: Callable[[], Iterable[CallRecord]]
    changed: Callable[[], None]
    by_tenant: bool = True
    shared: SharedGates | None = None
    clock: Callable[[], float] = time.time
    standings: dict[Key, Standing] = field(default_factory=dict)
    _fits: bool = field(default_factory=lambda: not extras.missing("calibration"))

    def load(self) -> None:
        """Read what was kept: in the file, and by all processes, which wins. What cannot be read is told, and
        the learning begins anew."""
        path = self.settings.path
        try:
            body = Path(path).read_bytes()
            self.standings = self._restored(body, path) or {}
            if OUTDATED in [standing.lapsed for standing in self.standings.values()]:
                # What counts again begins now, and not at each start.
                self._save()
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("the gates in %s cannot be read, and are learned anew: %s", path, error)
        if self.shared is not None:
            with contextlib.suppress(OSError):
                shared = self.shared.read()
                self.standings = (shared and self._restored(shared, "Redis")) or self.standings

    async def run(self) -> None:
        """Renew from time to time, until cancelled."""
        if not self._fits:
            log.warning("no gate is fitted without scikit-learn: %s", extras.how_to_install("calibration"))
            if self.shared is None:
                return
        while True:
            await asyncio.sleep(self.settings.renew_s)
            try:
                await self.renew()
            except Exception:
                log.exception("the gates could not be renewed; those in force stay")

    async def renew(self) -> None:
        """One renewal, now: what this process learns, or what the one that leads has learned."""
        renewed, ours = await asyncio.to_thread(self._looked)
        if renewed == self.standings:
            return
        for key, standing in renewed.items():
            if standing != self.standings.get(key):
                log.info("gate of %s: %s", told(key), sentence(standing))
        self.standings = renewed
        self.changed()
        if ours:
            await asyncio.to_thread(self._save)

    def close(self) -> None:
        """Let another process lead."""
        if self.shared is not None:
            with contextlib.suppress(OSError):
                self.shared.resign()

    def governances(self, base: Governance) -> dict[Key, Governance]:
        """For each tenant and model that was seen, how its requests are governed."""
        return {
            key: replace(
                base,
                mode=base.mode if standing.enforces else Mode.OBSERVE,
                policy=CalibratedPolicy(standing.gate, base.rules, standing.lapsed),
            )
            for key, standing in self.standings.items()
        }

    def report(self) -> dict[str, Any]:
        """JSON-ready: per tenant and model whether its gate is in force, and why, in words."""
        return {
            told(key): {
                "enforces": standing.enforces,
                "says": sentence(standing),
                "attempts": standing.attempts,
                "conversations": standing.conversations,
                "lapsed": standing.lapsed,
                "version": standing.gate.version if standing.gate else None,
                "threshold": standing.gate.threshold if standing.gate else None,
                "certificate": _certificate(standing),
            }
            for key, standing in self.standings.items()
        }

    def _restored(self, body: bytes, where: str) -> dict[Key, Standing] | None:
        """The standings in `body`, None where they cannot be read."""
        try:
            standings = restored(orjson.loads(body), self.clock())
        except (ValueError, GovernorError) as error:
            log.warning("the gates in %s cannot be read, and are learned anew: %s", where, error)
            return None
        for key, standing in standings.items():
            if standing.lapsed == OUTDATED and self.standings.get(key, Standing()).lapsed != OUTDATED:
                log.warning("the gate of %s in %s is not in force: %s", told(key), where, OUTDATED)
        return standings

    def _looked(self) -> tuple[dict[Key, Standing], bool]:
        """The standings as they are now, and whether they are to be kept in this process's file."""
        if self.shared is None:
            return self._renewed(self.standings), True
        try:
            return self._looked_at_all(self.shared)
        except OSError:
            # Counted and told there.
            return self._without_harm(), False

    def _looked_at_all(self, shared: SharedGates) -> tuple[dict[Key, Standing], bool]:
        # First, so that what the one that led until now has written is read.
        leads = self._fits and shared.lead()
        body = shared.read()
        found = None if body is None else self._restored(body, "Redis")
        known = self.standings if found is None else found
        if not leads:
            return known, False
        renewed = self._renewed(known)
        fresh = orjson.dumps(kept(renewed))
        if fresh != body and not shared.write(fresh):
            # It took so long that another leads: what it makes counts.
            return known, False
        return renewed, True

    def _without_harm(self) -> dict[Key, Standing]:
        """The standings, but for the gates that lapse by what this process knows."""
        records = self._records_by_tenant()
        standings = dict(self.standings)
        for (tenant, model), standing in self.standings.items():
            own = records.get(tenant, ())
            if standing.gate is not None and standing.enforces and (reason := lapse(standing.gate, own)):
                fallen = replace(standing, lapsed=reason, since=self.clock(), conversations=0)
                standings[tenant, model] = fallen
        return standings

    def _records_by_tenant(self) -> dict[str, list[CallRecord]]:
        by_tenant: dict[str, list[CallRecord]] = {}
        for record in self.records():
            tenant = tenant_of(record.conversation) if self.by_tenant else ""
            by_tenant.setdefault(tenant, []).append(record)
        return by_tenant

    def _renewed(self, standings: Mapping[Key, Standing]) -> dict[Key, Standing]:
        """Of a tenant from which nothing was learned, nothing is kept once its records are gone: anybody
        could fill the memory with names otherwise."""
        from governor_calibration.renewal import renew

        by_tenant = self._records_by_tenant()
        keys = {(tenant, record.model) for tenant, own in by_tenant.items() for record in own if record.model}
        keys |= {key for key, standing in standings.items() if standing != Standing()}
        return {
            (tenant, model): renew(
                by_tenant.get(tenant, ()),
                standings.get((tenant, model)) or standings.get(("", model)) or Standing(),
                model=model,
                max_harm=self.settings.max_harm,
                confidence=self.settings.confidence,
                now=self.clock(),
                settings=self.rules,
            )
            for tenant, model in sorted(keys)
        }

    def _save(self) -> None:
        """All or nothing: a reader never sees half a file."""
        path = Path(self.settings.path)
        fresh = path.with_suffix(".new")
        body = orjson.dumps(kept(self.standings))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(body)
            os.replace(fresh, path)
        except OSError as error:
            log.warning("the gates are kept in memory only: %s", error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)


def sentence(standing: Standing) -> str:
    """What a standing means, for people."""
    gate = standing.gate
    if standing.lapsed:
        return f"The certificate lapsed: {standing.lapsed}"
    if gate is None:
        return NOTHING_YET
    return gate.certificate.explain() if gate.certificate else gate.refusal


def _certificate(standing: Standing) -> Mapping[str, Any] | None:
    gate = standing.gate
    return gate.certificate.as_dict() if gate and gate.certificate else None
