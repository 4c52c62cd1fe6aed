"""Reads the dashboards as Grafana will, as far as that can be done without it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring" / "grafana" / "dashboards"
NAMES = ("governor.json", "governor-vllm.json")


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and where it stands."""

    dashboard: str
    panel: str
    expression: str

    def filled(self, variables: Mapping[str, str]) -> str:
        """The expression with Grafana's variables replaced, the longest names first."""
        text = self.expression
        for name in sorted(variables, key=len, reverse=True):
            text = text.replace(f"${name}", variables[name])
        return text


def dashboard(name: str) -> dict[str, Any]:
    """The JSON in the file `name`."""
    parsed: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return parsed


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that show something: no rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[Query]:
    """All of a dashboard's panels."""
    for panel in panels(dashboard(name)):
        for target in panel["targets"]:
            yield Query(name, panel["title"], target["expr"])
