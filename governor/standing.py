"""Where a deployment stands with its gate for one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from governor.errors import GovernorError
from governor.gate import Gate, GateOutdated

OUTDATED: Final = (
    "an earlier version certified it, which told conversations apart and ordered their calls in other ways; "
    "calls are only observed until enough new conversations certify a gate again."
)
"""Why a gate of an earlier version is not in force."""


class StandingMalformed(GovernorError, ValueError):
    """The data are no standing of this version."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is kept of a deployment between renewals, for one model.

    `lapsed`: why the certificate of `gate` no longer holds, "" if it does. Only conversations that began at
    `since` or later count. `attempts` at a certificate were made so far, the last one with `conversations`.
    `rules` is the fingerprint of the rules under which all of this was measured.
    """

    gate: Gate | None = None
    lapsed: str = ""
    since: float = 0.0
    attempts: int = 0
    conversations: int = 0
    rules: str = ""

    @property
    def enforces(self) -> bool:
        """Whether calls may be withheld."""
        return self.gate is not None and self.gate.certificate is not None and not self.lapsed

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "gate": None if self.gate is None else self.gate.as_dict(),
            "lapsed": self.lapsed,
            "since": self.since,
            "attempts": self.attempts,
            "conversations": self.conversations,
            "rules": self.rules,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], now: float = 0.0) -> Standing:
        """What `as_dict` gave. A gate of an earlier version is left out: it has lapsed, and only what begins
        from `now` on counts for another; the attempts made count on. Raises `StandingMalformed` or
        `governor.gate.GateMalformed` on anything else."""
        try:
            standing = cls(
                lapsed=str(data["lapsed"]),
                since=float(data["since"]),
                attempts=int(data["attempts"]),
                conversations=int(data["conversations"]),
                rules=str(data["rules"]),
            )
            gate = data["gate"]
            return standing if gate is None else replace(standing, gate=Gate.from_dict(gate))
        except GateOutdated:
            return replace(standing, lapsed=OUTDATED, since=now, conversations=0)
        except GovernorError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise StandingMalformed("malformed", repr(error)) from error


Key = tuple[str, str]
"""Whose standing and for which model: tenant ("" where all are one) and model."""


def told(key: Key) -> str:
    """A tenant and a model, for people.

    >>> told(("acme", "qwen")), told(("", "qwen"))
    ('acme/qwen', 'qwen')
    """
    return f"{key[0]}/{key[1]}" if key[0] else key[1]


def kept(standings: Mapping[Key, Standing]) -> list[dict[str, Any]]:
    """JSON-ready: what stands in a file of gates."""
    return [
        {"tenant": tenant, "model": model, "standing": standing.as_dict()}
        for (tenant, model), standing in standings.items()
    ]


def restored(data: Iterable[Mapping[str, Any]], now: float = 0.0) -> dict[Key, Standing]:
    """What `kept` gave, also after a trip through JSON; `now` as in `Standing.from_dict`. Raises
    `StandingMalformed` or `governor.gate.GateMalformed` on anything else."""
    try:
        return {
            (str(entry["tenant"]), str(entry["model"])): Standing.from_dict(entry["standing"], now)
            for entry in data
        }
    except (KeyError, TypeError) as error:
        raise StandingMalformed("malformed", repr(error)) from error
