"""The governor's own routes in docs/http-api.md, from their OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from governor_server.app import METRICS, OPEN, create_app, own_routes
from governor_server.dashboard.routes import is_of_page, is_private
from governor_server.settings import Settings
from governor_server.tables import IN_MEMORY
from scripts.pages import Page, table

METHODS = ("get", "post", "put", "patch", "delete")
ANYBODY = "Anybody may ask."
METRICS_READER = "Anybody may ask, but for the operator only where `auth.keys` are set."
OPERATOR = "The operator may ask."
ANYBODY_SIGNS_IN = "Anybody may ask, to sign in; where the operator has no keys, this machine only."


def description() -> Mapping[str, Any]:
    """The OpenAPI description of the routes that are there with every feature turned on."""
    settings = Settings.load(overrides={"store": {"path": IN_MEMORY}}, environ={})
    app = create_app(settings, upstream_url="http://upstream", registry=CollectorRegistry())
    return own_routes(app).openapi()


def routes() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, path and description of each."""
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield method.upper(), path, operation


def tables() -> dict[str, str]:
    """One part: a section for each route."""
    return {"routes": "\n\n".join(_section(*route) for route in routes())}


def who(path: str) -> str:
    """Who may ask, in a sentence."""
    if path in OPEN:
        return ANYBODY
    if is_of_page(path) and not is_private(path):
        return ANYBODY_SIGNS_IN
    return METRICS_READER if path == METRICS else OPERATOR


def _section(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method} {path}", " ".join(operation.get("description", "").split()), who(path)]
    if parameters := operation.get("parameters"):
        parts.append(table("parameter | in | type | default", (_row(each) for each in parameters)))
    return "\n\n".join(part for part in parts if part)


def _row(parameter: Mapping[str, Any]) -> tuple[str, ...]:
    schema = parameter["schema"]
    kinds = [str(each.get("type", "any")) for each in schema.get("anyOf", [schema])]
    default = schema.get("default")
    given = "-" if default in (None, "") else f"`{default}`"
    return (
        f"`{parameter['name']}`",
        parameter["in"],
        " or ".join(kinds),
        "required" if parameter.get("required") else given,
    )


PAGE = Page("http-api.md", tables)
