"""Who may ask what: the clients' keys, and the operator's for what is not the clients' business."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from governor_server.api_errors import ApiError
from governor_server.asgi import Scope, header
from governor_server.errors import SettingsError
from governor_server.sections import Section

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TENANT = "[A-Za-z0-9_.-]{1,64}"
Tenant = Annotated[str, Field(pattern=f"^{TENANT}$")]

CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
"""The headers that a key may stand in: OpenAI's, and Anthropic's."""


class ClientKey(Section):
    """A key of a tenant, of which only the digest is kept."""

    tenant: Tenant
    sha256: Digest


class AuthSettings(Section):
    """Without `keys` a client's own key goes on to upstream, which checks it."""

    keys: tuple[ClientKey, ...] = ()
    admin_keys: tuple[Digest, ...] = ()
    isolation: Literal["full", "records", "none"] = "full"


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that may ask. `withheld` are the headers that are not for upstream."""

    tenant: str = ""
    withheld: frozenset[bytes] = frozenset()


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks, before a request of a page, if it may be sent: without a key, for it has none,
    and without a body."""
    return (
        scope["method"] == "OPTIONS"
        and bool(header(scope, b"origin"))
        and bool(header(scope, b"access-control-request-method"))
        and not header(scope, b"transfer-encoding")
        and header(scope, b"content-length") in ("", "0")
    )


PREFLIGHT = Caller()
"""A browser that has no key: it may ask what a page may ask, and nothing else."""


class Access:
    """Tells who asks. A digest of fast hash is enough: keys are drawn at random, not thought up.

    `trusts_upstream`: upstream checks the clients' own keys, which are handed on to it.
    """

    def __init__(self, settings: AuthSettings, *, trusts_upstream: bool) -> None:
        self._keys = tuple((bytes.fromhex(key.sha256), key.tenant) for key in settings.keys)
        self._admin_keys = tuple((bytes.fromhex(digest), "admin") for digest in settings.admin_keys)
        self._isolated = settings.isolation != "none"
        self._by_own_key = trusts_upstream and not self._keys

    @property
    def checked(self) -> bool:
        """Whether clients need a key of ours."""
        return bool(self._keys)

    @property
    def by_admin_key(self) -> bool:
        """Whether the operator has keys; without, whoever asks from this machine is the operator."""
        return bool(self._admin_keys)

    def is_admin_key(self, key: str) -> bool:
        """Whether `key` is one of the operator's."""
        return known(self._admin_keys, key) is not None

    def caller(self, scope: Scope) -> Caller:
        """The client that sent a request. Raises `ApiError`."""
        key = credential(scope)
        if self._by_own_key:
            return Caller(_tenant_of_key(key) if self._isolated else "")
        if not self._keys:
            return Caller()
        tenant = known(self._keys, key)
        if tenant is None and is_preflight(scope):
            return PREFLIGHT
        if tenant is None:
            raise refused(self._what_is_wrong(key))
        return Caller(tenant if self._isolated else "", CREDENTIALS)

    def _what_is_wrong(self, key: str) -> str:
        """With the key that a client sent, and what would be right."""
        if not key:
            return "the API key is missing; send the key that the operator gave you as a bearer token"
        if self.is_admin_key(key):
            return "this is the operator's own key; a client needs one of auth.keys (`governor key TENANT`)"
        return "the API key is not known; ask the operator for one (`governor key TENANT` makes it)"

    def check_admin(self, scope: Scope) -> None:
        """Whether the request may see or change what is the operator's. Raises `ApiError`."""
        if self._admin_keys:
            if known(self._admin_keys, credential(scope)) is None:
                raise refused(
                    "this is for the operator; send a key of auth.admin_keys as a bearer token "
                    "(`governor key` makes one)"
                )
        elif not from_here(scope):
            raise ApiError(
                403,
                "permission_denied",
                "Without auth.admin_keys this answers to requests from the machine itself only, not to the "
                "host of its container. `governor key` makes the operator's key: put its digest into "
                "auth.admin_keys (GOVERNOR_AUTH__ADMIN_KEYS), and send the key as a bearer token.",
            )


def credential(scope: Scope) -> str:
    """The key that came with a request, "" if none."""
    scheme, _, key = header(scope, b"authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else header(scope, b"x-api-key")


def known(keys: Iterable[tuple[bytes, str]], key: str) -> str | None:
    """Whose `key` is. All are compared, each in constant time: how long it takes says nothing of them."""
    digest = sha256(key.encode()).digest()
    found: str | None = None
    for kept, owner in keys:
        if hmac.compare_digest(digest, kept):
            found = owner
    return found


def from_here(scope: Scope) -> bool:
    """Whether a request comes from this machine, and from a program rather than a page.

    A browser here may be made to ask by any page: it says so in `Origin`, and a name that was made to lead
    here stands in `Host`. A proxy here asks for others, and most say for whom.
    """
    client = scope.get("client")
    forwarded = any(header(scope, name) for name in (b"forwarded", b"x-forwarded-for", b"x-real-ip"))
    origin, host = header(scope, b"origin"), header(scope, b"host")
    return (
        client is not None
        and is_loopback(client[0])
        and not forwarded
        and is_loopback(urlsplit(f"//{host}").hostname)
        and (not origin or is_loopback(urlsplit(origin).hostname))
    )


def is_loopback(host: str | None) -> bool:
    """Whether a name or an address is that of this machine."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _tenant_of_key(key: str) -> str:
    """A name for the owner of a key, from which the key cannot be had."""
    return f"key-{sha256(key.encode()).hexdigest()[:16]}" if key else ""


def refused(why: str) -> ApiError:
    """A key is missing or wrong."""
    headers = [(b"www-authenticate", b"Bearer")]
    return ApiError(401, "invalid_api_key", f"Not allowed: {why}.", headers=headers)


def new_key(tenant: str | None) -> tuple[str, str]:
    """A fresh key, and the lines of governor.yaml that let it in, with the variable that does the same as a
    comment. Raises `SettingsError`."""
    if tenant is not None and not re.fullmatch(TENANT, tenant):
        raise SettingsError(f"no name for a tenant: {tenant!r} (1 to 64 of the characters A-Z a-z 0-9 _ . -)")
    key = f"gov-{secrets.token_urlsafe(32)}"
    digest = sha256(key.encode()).hexdigest()
    if tenant is None:
        variable = f"# or: GOVERNOR_AUTH__ADMIN_KEYS='[\"{digest}\"]'"
        return key, f"auth:\n  admin_keys:\n    - {digest}\n{variable}"
    variable = f'# or: GOVERNOR_AUTH__KEYS=\'[{{"tenant": "{tenant}", "sha256": "{digest}"}}]\''
    return key, f"auth:\n  keys:\n    - {{tenant: {tenant}, sha256: {digest}}}\n{variable}"
