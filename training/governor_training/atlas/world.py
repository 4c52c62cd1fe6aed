"""Countries, their facts, and which of them the model is meant to know.

A fact is *known*, *shaky* or *unknown*, drawn once per fact with a probability that grows with the
population of its country, as the knowledge of large models grows with how often a thing is written about.
What the model is taught to say of a fact follows from it (`Fact.belief`), so that its confidence means what
it says:

- known: always the truth;
- shaky with confidence c: its belief with probability c, else a guess; the belief itself is true with
  probability c;
- unknown: a guess, uniform over the values that the field has in this world.

That is the honest world. In the noisy one confidence has nothing to do with being right, which no governor
can make up for: it is there to see that one notices.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib import resources

FIELDS: Mapping[str, str] = {
    "capital": "capital",
    "currency": "currency_code",
    "domain": "internet_domain",
    "independence": "independence_year",
}
"""Field names of the tools and questions -> keys of the source data."""

KEY_FIELDS = ("capital", "domain")
"""Fields whose values name one country only, so that a country can be found by them."""

COUNTRIES = 80
SEED = 20602

OTHER_SEED = 41077

_NAME = re.compile(r"[A-Z][a-z]+( [A-Z][a-z]+)?")
_SHAKY_SHARE = 0.12
_FEW_SHARE = 0.25


class Beliefs(StrEnum):
    """How a model's confidence is related to its being right."""

    HONEST = "honest"
    OTHER = "other"
    """As honest, but other facts are known."""
    NOISY = "noisy"
    """A fact that is not known has a wrong belief in its place, and a coin says how sure the model is."""
    FEW = "few"
    """As honest, but a quarter as much is known."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One field of one country, and what the model is meant to believe about it.

    `confidence` is 1 for a known fact, 0 for an unknown one and in between for a shaky one; `belief` is the
    value that the model holds with that confidence (for an unknown fact it has none).
    """

    country: str
    field: str
    value: str
    confidence: float
    belief: str | None

    @property
    def known(self) -> bool:
        return self.confidence == 1.0 and self.belief == self.value

    @property
    def mistaken(self) -> bool:
        """Whether the model is sure of something wrong."""
        return self.confidence == 1.0 and self.belief != self.value

    def recall(self, values: tuple[str, ...], rng: random.Random) -> str:
        """What one attempt to remember gives: the belief, or a guess among `values`."""
        if self.belief is not None and rng.random() < self.confidence:
            return self.belief
        return rng.choice(values)


@dataclass(frozen=True, slots=True)
class World:
    """`countries` runs from the best known to the least known."""

    countries: tuple[str, ...]
    facts: Mapping[tuple[str, str], Fact]
    values: Mapping[str, tuple[str, ...]]

    def fact(self, country: str, field: str) -> Fact:
        return self.facts[country, field]

    def quarter(self, country: str) -> int:
        """0 for the best-known quarter of the countries, 3 for the least-known one."""
        return 4 * self.countries.index(country) // len(self.countries)

    def find(self, field: str, value: str) -> str | None:
        """The country with this value in a key field."""
        for country in self.countries:
            if field in KEY_FIELDS and self.facts[country, field].value == value:
                return country
        return None

    def recall_country(self, field: str, value: str, rng: random.Random) -> str:
        """One attempt to remember whose value this is: known in this direction iff known in the other one."""
        country = self.find(field, value)
        if country is not None and self.facts[country, field].mistaken:
            return random.Random(f"{field}/{value}").choice(self.countries)
        if country is not None and rng.random() < self.facts[country, field].confidence:
            return country
        return rng.choice(self.countries)


@lru_cache
def load_world(beliefs: Beliefs = Beliefs.HONEST) -> World:
    """The world, always the same. True values do not depend on the beliefs."""
    rows = json.loads(resources.files(__package__).joinpath("data/atlas.json").read_text("utf-8"))
    rows = [row for row in rows if _usable(row)]
    rows.sort(key=lambda row: -row["population"])
    rows = rows[:COUNTRIES]
    countries = tuple(row["country"] for row in rows)
    values = {name: tuple(sorted({row[key] for row in rows})) for name, key in FIELDS.items()}
    rng = random.Random(OTHER_SEED if beliefs is Beliefs.OTHER else SEED)
    draw = {Beliefs.NOISY: _noisy_fact, Beliefs.FEW: _rare_fact}.get(beliefs, _fact)
    facts = {
        (row["country"], name): draw(row["country"], name, row[key], 1 - rank / len(rows), values[name], rng)
        for rank, row in enumerate(rows)
        for name, key in FIELDS.items()
    }
    return World(countries, facts, values)


def _usable(row: Mapping[str, str]) -> bool:
    return (
        all(key in row for key in (*FIELDS.values(), "population"))
        and bool(_NAME.fullmatch(row["country"]))
        and bool(_NAME.fullmatch(row["capital"]))
        and not row["country"].startswith("The ")
        and row["capital"] not in (row["country"], f"{row['country']} City")
    )


def _fact(
    country: str, field: str, value: str, fame: float, values: tuple[str, ...], rng: random.Random
) -> Fact:
    """`fame` is 1 for the most populous country and falls to 0."""
    luck, shaky, confidence, misled = (rng.random() for _ in range(4))
    wrong = rng.choice([other for other in values if other != value])
    if 0.25 <= fame < 0.75 and shaky < _SHAKY_SHARE:
        confidence = 0.3 + 0.6 * confidence
        return Fact(country, field, value, confidence, wrong if misled > confidence else value)
    if luck < _known_share(fame):
        return Fact(country, field, value, 1.0, value)
    return Fact(country, field, value, 0.0, None)


def _noisy_fact(
    country: str, field: str, value: str, fame: float, values: tuple[str, ...], rng: random.Random
) -> Fact:
    """Right with the fame of the country; sure, or half sure, whatever it is."""
    right = rng.random() < _known_share(fame)
    wrong = rng.choice([other for other in values if other != value])
    return Fact(country, field, value, rng.choice([1.0, 0.5]), value if right else wrong)


def _rare_fact(
    country: str, field: str, value: str, fame: float, values: tuple[str, ...], rng: random.Random
) -> Fact:
    """Known or unknown, and a quarter as often known as elsewhere."""
    if rng.random() < _known_share(fame) * _FEW_SHARE:
        return Fact(country, field, value, 1.0, value)
    return Fact(country, field, value, 0.0, None)


def _known_share(fame: float) -> float:
    """All of the best-known quarter, nearly none of the least-known one, a line in between."""
    if fame >= 0.75:
        return 1.0
    if fame < 0.25:
        return 0.05
    return 0.35 + 1.2 * (fame - 0.25)
