"""JSON texts of every kind, with the numbers that parsers and writers tend to change."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.sampled_from(
        [
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "-0",
            "-0.0",
            "1E-7",
            "1e400",
            "-1e400",
            "1e-400",
            "1.50",
            "2.2250738585072011e-308",
            "0.1000000000000000055511151231257827",
            "9007199254740993",
            "9007199254740993.0",
            "123456789012345678901.5",
        ]
    ),
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
SCALARS = st.one_of(NUMBERS, st.sampled_from(["null", "true", "false"]), st.text(max_size=8).map(json.dumps))


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of objects."""
    members = st.dictionaries(st.text(max_size=4), values, max_size=3)
    return members.map(lambda found: f"{{{','.join(f'{json.dumps(k)}: {v}' for k, v in found.items())}}}")


TEXTS = st.recursive(
    SCALARS,
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda found: f"[ {','.join(found)}]"),
    max_leaves=12,
)
"""Characters of any kind are in them, escaped as `json` writes them; but no half of a surrogate pair."""


def exactly(text: str | bytes) -> Any:
    """The value of a JSON text without any rounding."""
    return json.loads(text, parse_float=Decimal)
