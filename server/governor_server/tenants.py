"""Whose conversations and calls are whose.

Names and call ids are chosen by clients and models, so that two tenants may use the same ones, by chance or
on purpose. Inside, the name of a conversation is therefore written with its tenant in front, and a call
belongs to a conversation, so that what one tenant says can name nothing of another's.
"""

from __future__ import annotations

from governor.calls import digest

MAX_NAME_LENGTH = 256
"""Of a conversation's name, in characters; a longer one is kept as its digest, as it is kept in every
record."""


def qualified(tenant: str, name: str) -> str:
    """`name` as one of `tenant`'s, the same for a name that is so already.

    Without a tenant a name stays as it is, unless it could be taken for another's.

    >>> qualified("acme", "talk"), qualified("acme", "acme/talk"), qualified("beta", "acme/talk")
    ('acme/talk', 'acme/talk', 'beta/acme/talk')
    >>> qualified("", "talk"), qualified("", "acme/talk")
    ('talk', '/acme/talk')
    """
    prefix = f"{tenant}/"
    if (not tenant and "/" not in name) or name.startswith(prefix):
        return name
    return prefix + name


def tenant_of(name: str) -> str:
    """The tenant of a qualified name.

    >>> tenant_of("acme/talk"), tenant_of("talk"), tenant_of("/acme/talk")
    ('acme', '', '')
    """
    return name.partition("/")[0] if "/" in name else ""


def conversation_name(tenant: str, given: str) -> str:
    """The name inside of a conversation that a client calls `given`."""
    if len(given) > MAX_NAME_LENGTH:
        given = digest(given)
    return qualified(tenant, given)
