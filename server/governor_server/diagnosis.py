"""What was found out about an upstream, and what it means for the tiers of the governor."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

WIDTH = 110


class Result(StrEnum):
    """How a check came out. `WARN`: it works in part, or could not be proven."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was `seen`, what it means (empty where there is nothing to say) and how to put it
    right (empty where nothing is to be done)."""

    check: str
    result: Result
    seen: str
    meaning: str = ""
    fix: str = ""


class Prospect(StrEnum):
    """Whether a tier will work. `PROBABLY`: nothing speaks against it, but not everything was proven."""

    YES = "yes"
    PROBABLY = "probably"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Tier:
    """A way of judging calls, and the checks that it rests on."""

    number: int
    name: str
    does: str
    needs: tuple[str, ...]


_RULES = ("server", "key", "model", "chat", "tool calls")
_PROBE = (*_RULES, "logprobs", "top_logprobs", "additions", "call ban", "forced answer", "reasoning off")
TIERS = (
    Tier(0, "rules", "Repeats, cycles and budgets are found without any measurement.", _RULES),
    Tier(
        1,
        "stream signals",
        "Entropy is measured while the model writes.",
        (*_RULES, "logprobs", "top_logprobs", "additions", "logprobs of calls", "streamed logprobs"),
    ),
    Tier(2, "probe", "A short forced answer shows what the model knows without the call.", _PROBE),
    Tier(
        3,
        "calibrated gate",
        "A gate is learned from the probes of your traffic; until then it observes.",
        _PROBE,
    ),
)
REQUIRED_TIERS = 3
"""The tiers 0 to 2 depend on the upstream alone, so the exit code is about them."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings about the server at `url`, in the order of the checks."""

    url: str
    findings: tuple[Finding, ...]

    def prospect(self, tier: Tier) -> Prospect:
        """Whether `tier` will work."""
        results = {finding.result for finding in self._of(tier)}
        if Result.MISSING in results:
            return Prospect.NO
        return Prospect.YES if results <= {Result.OK} else Prospect.PROBABLY

    @property
    def exit_code(self) -> int:
        """0 when nothing speaks against the tiers 0 to 2, else 1."""
        return int(any(self.prospect(tier) is Prospect.NO for tier in TIERS[:REQUIRED_TIERS]))

    @property
    def fixes(self) -> tuple[str, ...]:
        """What to do, the most important first: what is missing before what is doubtful, and among those
        what stands in the way of the lowest tier."""
        ranked = sorted(self.findings, key=_rank)
        return tuple(dict.fromkeys(finding.fix for finding in ranked if finding.fix))

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        tiers = [
            {"tier": tier.number, "name": tier.name, "works": self.prospect(tier), "why": self._why(tier)}
            for tier in TIERS
        ]
        return {
            "upstream": self.url,
            "checks": [asdict(finding) for finding in self.findings],
            "tiers": tiers,
            "fixes": list(self.fixes),
            "exit_code": self.exit_code,
        }

    def as_text(self) -> str:
        """For people: the table, the tiers, the fixes."""
        parts = [table(self.findings), "What will work", *map(self._tier_line, TIERS)]
        if self.fixes:
            parts += ["", "What to do, most important first"]
            parts += [_wrapped(f"{number}. ", fix) for number, fix in enumerate(self.fixes, 1)]
        return "\n".join(parts) + "\n"

    def _of(self, tier: Tier) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.check in tier.needs)

    def _why(self, tier: Tier) -> str:
        """The checks that stand in the way, or leave it open."""
        prospect = self.prospect(tier)
        if prospect is Prospect.NO:
            missing = [one.check for one in self._of(tier) if one.result is Result.MISSING]
            return f"This fails: {', '.join(missing)}."
        if prospect is Prospect.PROBABLY:
            open_ = [one.check for one in self._of(tier) if one.result is not Result.OK]
            return f"This is not proven: {', '.join(open_)}."
        return ""

    def _tier_line(self, tier: Tier) -> str:
        head = f"  tier {tier.number}  {tier.name:<17}{self.prospect(tier):<10}"
        return _wrapped(head, f"{tier.does} {self._why(tier)}")


def _rank(finding: Finding) -> tuple[bool, int]:
    lowest = min((tier.number for tier in TIERS if finding.check in tier.needs), default=len(TIERS))
    return finding.result is not Result.MISSING, lowest


def table(findings: Sequence[Finding]) -> str:
    """The findings as aligned columns; the meaning stands below what was seen, where all is not well."""
    check_width = max(len(finding.check) for finding in findings) + 2
    lines = [f"{'check':<{check_width}}{'result':<9}seen"]
    for finding in findings:
        head = f"{finding.check:<{check_width}}{finding.result:<9}"
        lines.append(_wrapped(head, finding.seen))
        if finding.meaning and finding.result is not Result.OK:
            lines.append(_wrapped(" " * len(head), finding.meaning))
    return "\n".join([*lines, ""])


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)).rstrip() or head
