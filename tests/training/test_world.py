"""The atlas world: what the model is meant to know, and what it is not."""

from __future__ import annotations

import random
from collections import Counter

from governor_training.atlas.environment import FlakyAtlas
from governor_training.atlas.questions import held_out, held_out_sample, sample
from governor_training.atlas.tools import FAILED, FAILURES
from governor_training.atlas.world import FIELDS, KEY_FIELDS, Beliefs, load_world
from governor_training.environment import Split

WORLD = load_world()


def test_knowledge_falls_with_fame() -> None:
    """Each quarter of the countries is known less well than the one before, from nearly all to nearly
    nothing."""
    known = Counter(WORLD.quarter(fact.country) for fact in WORLD.facts.values() if fact.known)
    size = len(WORLD.facts) / 4
    shares = [known[quarter] / size for quarter in range(4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= 0.95
    assert shares[3] <= 0.15


def test_a_key_field_names_one_country() -> None:
    """A country can be found by its key fields: no value belongs to two."""
    for field in KEY_FIELDS:
        for country in WORLD.countries:
            assert WORLD.find(field, WORLD.fact(country, field).value) == country


def test_belief_is_held_as_often_as_its_confidence_says() -> None:
    """Over many attempts a shaky belief comes up with its confidence, give or take the guesses that hit
    it."""
    rng = random.Random(1)
    shaky = [fact for fact in WORLD.facts.values() if 0 < fact.confidence < 1]
    assert shaky
    for fact in shaky[:5]:
        values = WORLD.values[fact.field]
        said = sum(fact.recall(values, rng) == fact.belief for _ in range(4000)) / 4000
        expected = fact.confidence + (1 - fact.confidence) / len(values)
        assert abs(said - expected) < 0.04


def test_an_unknown_fact_is_guessed_evenly() -> None:
    """Nothing that the model is taught prefers the true value of an unknown fact."""
    rng = random.Random(2)
    fact = next(fact for fact in WORLD.facts.values() if fact.confidence == 0)
    values = WORLD.values[fact.field]
    said = Counter(fact.recall(values, rng) for _ in range(100 * len(values)))
    assert set(said) == set(values)
    assert max(said.values()) < 200


def test_training_never_sees_a_held_out_question() -> None:
    """The sampler of the training data gives none of the held-out texts."""
    texts = {question.text for question in held_out(WORLD)}
    rng = random.Random(3)
    assert all(sample(WORLD, rng).text not in texts for _ in range(5000))


def test_held_out_samples_are_reproducible_and_mixed() -> None:
    """The same seed gives the same questions, of both kinds, and another seed gives others."""
    first, again, other = (held_out_sample(WORLD, 200, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(question.hops == 2 for question in first) == 50
    assert {question.field for question in first} == set(FIELDS)


def test_a_flaky_lookup_fails_the_same_for_everybody_who_asks() -> None:
    """Else one rollout of a group is luckier than another, and a run cannot be replayed."""
    atlas = FlakyAtlas()
    arguments = {"country": WORLD.countries[0], "field": "capital"}
    results = []
    for task in atlas.tasks(200, 1, Split.TRAIN):
        first, second = atlas.toolbox(task), atlas.toolbox(task)
        said = [first.call("lookup", arguments) for _ in range(5)]
        assert said == [second.call("lookup", arguments) for _ in range(5)]
        results += said
    assert set(results) == {FAILED, WORLD.fact(WORLD.countries[0], "capital").value}
    assert abs(results.count(FAILED) / len(results) - FAILURES) < 0.05


def test_few_facts_are_known_in_the_world_of_the_weak_model() -> None:
    """A quarter of those that the bundled model knows, and none is half known."""
    few = load_world(Beliefs.FEW)
    known = sum(fact.known for fact in few.facts.values())
    assert 0.15 < known / sum(fact.known for fact in WORLD.facts.values()) < 0.35
    assert {fact.confidence for fact in few.facts.values()} == {0.0, 1.0}
    assert [fact.value for fact in few.facts.values()] == [fact.value for fact in WORLD.facts.values()]
