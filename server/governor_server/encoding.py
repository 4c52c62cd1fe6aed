"""Bodies that upstream compressed though nobody had asked it to."""

from __future__ import annotations

import zlib
from typing import Final

PIECE_BYTES: Final = 1024 * 1024
"""What is unpacked at a time, so that a small body that unpacks to a huge one meets the limits."""

_FORMATS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_RAW: Final = -15
_GZIP_BEGINS: Final = b"\x1f"


class Decoder:
    """Unpacks one body piece by piece. Raises `zlib.error`."""

    def __init__(self, format: int) -> None:
        self._format = format
        self._unpacker = zlib.decompressobj(format)
        self._packed = b""
        self._begun = False
        self._more = False
        self._plain: bool | None = None

    @classmethod
    def of(cls, encoding: str) -> Decoder | None:
        """The decoder for a `content-encoding`; None if it takes more than the standard library."""
        format = _FORMATS.get(encoding.strip().lower())
        return None if format is None else cls(format)

    def feed(self, packed: bytes) -> None:
        """Take in what came. Some servers say `gzip` of what they did not compress."""
        if self._plain is None:
            self._plain = self._format == _FORMATS["gzip"] and not packed.startswith(_GZIP_BEGINS)
        self._packed += packed

    def take(self) -> bytes:
        """The next unpacked bytes; b"" where more must come first."""
        if self._plain:
            plain, self._packed = self._packed, b""
            return plain
        while self._packed or self._more:
            unpacked = self._unpack()
            self._packed = self._unpacker.unconsumed_tail
            self._more = len(unpacked) == PIECE_BYTES
            if self._unpacker.eof:
                self._packed, self._more = self._unpacker.unused_data, False
                self._unpacker = zlib.decompressobj(self._format)
            if unpacked:
                return unpacked
        return b""

    def _unpack(self) -> bytes:
        """Some servers send `deflate` without the header that it should have."""
        begun, self._begun = self._begun, True
        try:
            return self._unpacker.decompress(self._packed, PIECE_BYTES)
        except zlib.error:
            if begun or self._format != _FORMATS["deflate"]:
                raise
            self._format = _RAW
            self._unpacker = zlib.decompressobj(_RAW)
            return self._unpacker.decompress(self._packed, PIECE_BYTES)
