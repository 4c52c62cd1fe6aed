"""The policies that a proxy can be run with: those of the core, and those that other packages bring."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from governor.errors import GovernorError
from governor.gate import Gate
from governor.policies import POLICIES, Policy, PolicyError, PolicyKind
from governor.policies.table import find_kind
from governor.standing import OUTDATED, restored, told

GROUP = "governor.policies"
"""Entry points of this group add policies under the entry point's name. Each is a `PolicyKind`, or what makes
a policy from parameters by keyword: its class, or a function."""

log = logging.getLogger(__name__)


def table() -> dict[str, PolicyKind]:
    """All policies by name. A plug-in that cannot be loaded, or that takes the name of a built-in policy, is
    told in one line of the log and left out."""
    found = dict(POLICIES)
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        if entry_point.name in found:
            log.warning("policy %s of %s is left out: the name is taken", entry_point.name, entry_point.value)
            continue
        try:
            found[entry_point.name] = _kind(entry_point.name, entry_point.load())
        # A plug-in may fail in any way, and the proxy runs without it.
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("policy %s of %s is left out: %s", entry_point.name, entry_point.value, why)
    return found


def kind(name: str) -> PolicyKind:
    """The policy of that name before its parameters are chosen; plug-ins are loaded only where the name is
    none of ours. Raises `PolicyError`."""
    return POLICIES[name] if name in POLICIES else find_kind(name, table())


def policy(name: str, parameters: Mapping[str, Any]) -> Policy:
    """The policy of that name. Raises `PolicyError`, whose `detail` is a sentence for the user."""
    given = dict(parameters)
    if name == "calibrated" and isinstance(given.get("gate"), str):
        given["gate"] = gate(given["gate"])
    return kind(name).make(**given)


def gate(where: str) -> Gate:
    """The gate in a file of gates, which holds one for each tenant and model: `gates.json#tenant/model`,
    `gates.json#model` where all tenants are one, or `gates.json` if there is only one. Raises
    `PolicyError`."""
    path, _, wanted = where.partition("#")
    try:
        standings = restored(orjson.loads(Path(path).read_bytes()))
    except (OSError, ValueError, GovernorError) as error:
        raise PolicyError("bad_parameter", f"no gates in {path}: {error}") from None
    if any(kept.lapsed == OUTDATED for kept in standings.values()):
        raise PolicyError("bad_parameter", f"the gates in {path} are of an earlier version: learn them again")
    gates = {told(key): kept.gate for key, kept in standings.items() if kept.gate is not None}
    if wanted in gates:
        return gates[wanted]
    if wanted or len(gates) != 1:
        known = ", ".join(f"{path}#{name}" for name in gates) or "none"
        raise PolicyError("bad_parameter", f"which gate of {path}? There are: {known}")
    return next(iter(gates.values()))


def _kind(name: str, loaded: object) -> PolicyKind:
    if isinstance(loaded, PolicyKind):
        return loaded
    if not callable(loaded):
        raise TypeError(f"a {type(loaded).__name__} makes no policy")
    description = (loaded.__doc__ or "").strip().partition("\n")[0]
    return PolicyKind(name, description, loaded)
