"""Tokens from the logprobs that an engine sends."""

from __future__ import annotations

from math import log
from typing import Any

import pytest

from governor.errors import LogprobsMalformed
from governor.tokens import tokens_from_logprobs


def entry(own: float, *top: float) -> dict[str, Any]:
    """One element of `logprobs.content`."""
    return {"token": "x", "logprob": own, "top_logprobs": [{"token": "y", "logprob": p} for p in top]}


def test_a_token_carries_its_own_logprob_and_its_distributions_figures() -> None:
    """A token drawn from (0.5, 0.25, 0.25) has that distribution's entropy and margin, whichever was
    drawn."""
    p, q = log(0.5), log(0.25)
    [token] = tokens_from_logprobs([entry(p, p, q, q)], 3)
    assert (token.text, token.logprob) == ("x", p)
    assert token.entropy.value == pytest.approx(1.5 * log(2))
    assert token.margin == pytest.approx(0.25)


def test_a_sampled_token_outside_the_list_is_added() -> None:
    """Its probability is known, so that it is no part of the tail."""
    [token] = tokens_from_logprobs([entry(log(0.05), log(0.6), log(0.3))], 1000)
    assert token.entropy.tail == pytest.approx(0.05)


def test_a_sampled_token_that_is_the_least_of_the_list_bounds_nothing() -> None:
    """The engine cuts the list after putting the sampled token first, so that it may hide more probable
    ones."""
    listed = [log(0.01), log(0.6)]
    [sampled] = tokens_from_logprobs([entry(log(0.01), *listed)], 1000)
    [other] = tokens_from_logprobs([entry(log(0.6), *listed)], 1000)
    assert sampled.entropy.lower < other.entropy.lower
    assert sampled.entropy.upper == other.entropy.upper


@pytest.mark.parametrize("alternatives", [[], None])
def test_without_alternatives_the_own_logprob_is_all_that_is_known(alternatives: list[Any] | None) -> None:
    """`top_logprobs: 0` still gives bounds, wide ones."""
    [token] = tokens_from_logprobs([{"token": "x", "logprob": log(0.75), "top_logprobs": alternatives}], 1000)
    assert token.entropy.tail == pytest.approx(0.25)
    assert token.entropy.lower < token.entropy.upper


def test_a_chunk_may_carry_any_number_of_tokens() -> None:
    """Speculative decoding sends several at once, the role chunk none."""
    assert tokens_from_logprobs([], 10) == ()
    assert len(tokens_from_logprobs([entry(-0.1, -0.1, -3.0)] * 3, 10)) == 3


@pytest.mark.parametrize(
    "content",
    [
        [{"token": "x"}],
        [{"logprob": -0.1}],
        [{"token": "x", "logprob": "much"}],
        [{"token": "x", "logprob": None}],
        [{"token": 1, "logprob": -0.1}],
        [entry(float("nan"), -0.1)],
        [{"token": "x", "logprob": -0.1, "top_logprobs": [{"token": "y"}]}],
        ["x"],
        [None],
        17,
    ],
)
def test_malformed_logprobs_are_one_error(content: Any) -> None:
    """Whatever is wrong, the caller has one exception to let the call pass on."""
    with pytest.raises(LogprobsMalformed) as caught:
        tokens_from_logprobs(content, 10)
    assert caught.value.reason == "malformed"
    assert str(caught.value).startswith("malformed: ")


def test_a_banned_token_is_taken_out_of_the_distribution() -> None:
    """A model that wants to call (0.9) and otherwise surely says Lima is certain of Lima, not unsure."""
    entry = {
        "token": "Lima",
        "logprob": log(0.099),
        "top_logprobs": [
            {"token": "<tool_call>", "logprob": log(0.9)},
            {"token": "Lima", "logprob": log(0.099)},
            {"token": "Cusco", "logprob": log(0.001)},
        ],
    }
    (token,) = tokens_from_logprobs([entry], 100, banned="<tool_call>")
    assert token.margin == pytest.approx(0.98)
    assert token.logprob == pytest.approx(log(0.99))
    assert token.entropy.value == pytest.approx(-0.99 * log(0.99) - 0.01 * log(0.01), abs=1e-3)


def test_a_ban_of_nearly_everything_leaves_a_distribution() -> None:
    """What is left of a certain call is still read, without a logarithm of nothing."""
    entry = {
        "token": "Lima",
        "logprob": -25.0,
        "top_logprobs": [{"token": "<tool_call>", "logprob": 0.0}, {"token": "Lima", "logprob": -25.0}],
    }
    (token,) = tokens_from_logprobs([entry], 100, banned="<tool_call>")
    assert token.logprob <= 0
    assert 0 <= token.margin <= 1
