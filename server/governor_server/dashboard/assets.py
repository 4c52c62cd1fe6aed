"""The files of the page, as they are in the package: read once, and named by their content, so that a browser
keeps them until they are others."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Final

TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
VERSION_MARK: Final = "@VERSION@"

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from elsewhere, and nothing that stands in the page itself: a text of a conversation that looks
like a script is none."""

GUARDS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
PRIVATE: Final = {**GUARDS, "cache-control": "no-store"}
LASTING: Final = {**GUARDS, "cache-control": "public, max-age=31536000, immutable"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file and the type to send it with."""

    body: bytes
    type: str


class Assets:
    """The files by name; `version` changes with any of them. Pages (HTML) refer to the others by it."""

    def __init__(self) -> None:
        folder = files(__package__) / "static"
        bodies = {
            file.name: file.read_bytes()
            for file in sorted(folder.iterdir(), key=lambda file: file.name)
            if file.name.rpartition(".")[2] in TYPES
        }
        whole = sha256(b"".join(name.encode() + b"\0" + body for name, body in bodies.items()))
        self.version = whole.hexdigest()[:12]
        self._files = {
            name: Asset(body, TYPES[name.rpartition(".")[2]])
            for name, body in bodies.items()
            if not name.endswith(".html")
        }
        self._pages = {
            name: body.decode().replace(VERSION_MARK, self.version)
            for name, body in bodies.items()
            if name.endswith(".html")
        }

    def file(self, name: str) -> Asset | None:
        """None for a name that there is not."""
        return self._files.get(name)

    def page(self, name: str) -> str:
        """A page. Raises KeyError for a name that there is not."""
        return self._pages[name]
