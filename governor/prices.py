"""What tokens and tool calls cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

PER_MILLION = 1e-6


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million prompt tokens, for a million completion tokens, and for a call of a tool by shell
    pattern of its name: the first pattern that fits counts, and a tool that fits none costs nothing.

    >>> prices = Prices(prompt=2.0, completion=8.0, calls={"web_*": 0.01})
    >>> prices.of_tokens(500_000, 250_000), prices.of_call("web_search"), prices.of_call("lookup")
    (3.0, 0.01, 0.0)
    """

    prompt: float = 0.0
    completion: float = 0.0
    calls: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_anything(self) -> bool:
        """Whether anything costs money."""
        return self.of_any_token or any(self.calls.values())

    @property
    def of_any_token(self) -> bool:
        """Whether tokens cost money."""
        return bool(self.prompt or self.completion)

    def of_tokens(self, prompt: int, completion: int) -> float:
        """The price of so many tokens."""
        return PER_MILLION * (prompt * self.prompt + completion * self.completion)

    def of_call(self, tool: str) -> float:
        """The price of one call."""
        return next((price for pattern, price in self.calls.items() if fnmatchcase(tool, pattern)), 0.0)
