"""Addresses in upstream's headers that name upstream itself, as the client may use them.

A client that follows one to upstream goes round the governor and its keys, if it gets there at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from yarl import URL

ADDRESSES = frozenset({b"location", b"content-location", b"refresh"})
"""Headers that hold one."""

REFRESH = re.compile(r"^(\s*[0-9.]*\s*[;,]\s*url\s*=\s*)(['\"]?)(.*?)(\2\s*)$", re.IGNORECASE)
"""`5; url=http://...`, the address in quotes or not."""

DEFAULT_PORTS = frozenset({80, 443})


def own_address(name: bytes, value: bytes, roots: Sequence[URL]) -> bytes:
    """The value of one of the `ADDRESSES`, in which an address of one of the `roots` is given by its path
    alone: the client asks the server then that it asked before. All other addresses stay as they are."""
    text = value.decode("latin-1")
    if name != b"refresh":
        return own_path(text, roots).encode("latin-1")
    found = REFRESH.match(text)
    if found is None:
        return value
    before, quote, address, after = found.groups()
    return f"{before}{quote}{own_path(address, roots)}{after}".encode("latin-1")


def own_path(address: str, roots: Sequence[URL]) -> str:
    """The path, query and fragment of an address at one of the `roots`, else the address."""
    try:
        url = URL(address.strip(), encoded=True)
        root = next((root for root in roots if is_at(url, root)), None)
    except ValueError:
        return address
    if root is None:
        return address
    path = url.raw_path
    if is_below(path, root.raw_path):
        path = path.removeprefix(root.raw_path.rstrip("/"))
    # Two slashes at the beginning would be the beginning of a host.
    path = "/" + path.lstrip("/")
    query = f"?{url.raw_query_string}" if url.raw_query_string else ""
    fragment = f"#{url.raw_fragment}" if url.raw_fragment else ""
    return path + query + fragment


def is_at(url: URL, root: URL) -> bool:
    """Whether `url` is at the server of `root`. Behind a proxy that ends TLS a server may not know by which
    scheme it was asked."""
    if not url.raw_host:
        # Of the same server. Its own path is not the client's where it is served below another.
        return root.raw_path != "/" and is_below(url.raw_path, root.raw_path)
    if not url.scheme:
        url = url.with_scheme(root.scheme)
    defaults = url.port in DEFAULT_PORTS and root.port in DEFAULT_PORTS
    return host_of(url) == host_of(root) and (url.port == root.port or defaults)


def host_of(url: URL) -> str:
    """The name of the server, by which two spellings can be compared."""
    return unquote(url.host or "").rstrip(".").lower()


def is_below(path: str, root: str) -> bool:
    """Whether a path is `root` or goes on from it."""
    root = root.rstrip("/")
    return path == root or path.startswith(f"{root}/") or not root
