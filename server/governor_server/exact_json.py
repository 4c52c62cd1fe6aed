"""JSON whose numbers survive being read and written.

A Python float holds 17 digits, and most parsers take an integer beyond 64 bits for one. Schemas have such
numbers (`"maximum": 18446744073709551616`), and whoever is asked with another one may answer something else.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec
import orjson


class Number(float):
    """A number that a float only comes near to; `text` is how it was written."""

    __slots__ = ("text",)

    text: str


def loads(raw: bytes) -> Any:
    """The value of a JSON text; of a name that comes twice in an object the last value. Raises ValueError,
    also where the text is nested too deeply."""
    try:
        return _decoder.decode(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any) -> bytes:
    """`value` as JSON, with each number from `loads` as it came. Raises TypeError, and ValueError for text
    that is no Unicode."""
    try:
        return orjson.dumps(value, default=_fragment)
    except TypeError:
        # Integers beyond 64 bits, deep nesting.
        return _encoder.encode(value)


def _number(text: str) -> float:
    value = float(text)
    if repr(value) == text or _is_exact(value, text):
        return value
    number = Number(value)
    number.text = text
    return number


def _is_exact(value: float, text: str) -> bool:
    try:
        return Decimal(repr(value)) == Decimal(text)
    except InvalidOperation:
        return False


def _fragment(value: object) -> orjson.Fragment:
    return orjson.Fragment(_text(value))


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_text(value).encode())


def _text(value: object) -> str:
    if not isinstance(value, Number):
        raise TypeError(f"{type(value).__name__} is no JSON")
    return value.text


_decoder: Final = msgspec.json.Decoder(float_hook=_number)
_encoder: Final = msgspec.json.Encoder(enc_hook=_raw)
