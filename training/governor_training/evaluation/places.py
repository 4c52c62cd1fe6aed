"""Which environment, which model, and how a governor for them is set up."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governor.calls import ToolCatalog
from governor.governance import Governance
from governor.probe import ProbeSettings
from governor.spans import Markup
from governor_training.dataset import (
    RIGHT_FROM,
    DatasetEnvironment,
    ToolModule,
    attribute,
    load_module,
    load_rows,
    scorer,
)
from governor_training.environment import Environment
from governor_training.errors import Unreachable, UsageError
from governor_training.local import Served

BUNDLED: Mapping[str, str] = {
    "atlas": "governor_training.atlas.environment:AtlasEnvironment",
    "files": "governor_training.files.environment:FilesEnvironment",
}
"""The environments that come with the package, each with a function `bundled_model` in its module."""

TIMEOUT_S = 30.0
UNKNOWN_VOCAB_SIZE = 262_144
"""As large as the largest common vocabulary, so that an upper bound remains one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an evaluation happens."""

    environment: Environment
    served: Served

    @classmethod
    def of(
        cls,
        *,
        environment: str,
        dataset: Path | None,
        tools: str | None,
        score_by: str,
        right: float | None = None,
        upstream: str | None,
        model: str | None,
    ) -> Place:
        """From the options of the command. Raises `UsageError`."""
        chosen = environment_of(environment, dataset, tools, score_by, right)
        if upstream is None:
            bundled = None if dataset is not None else environment
            return cls(chosen, Served(_name(chosen, model), model or bundled_model(bundled)))
        name = model or chosen.model_name or first_model(upstream)
        return cls(chosen, Served(name, upstream=upstream))


def environment_of(
    name: str, dataset: Path | None, tools: str | None, score_by: str, right: float | None = None
) -> Environment:
    """The environment `name`, or the one that a data set and a module of tools make, in which a score of at
    least `right` counts as 1 (None: the scorer's own threshold). Raises `UsageError`."""
    return _dataset(dataset, tools, score_by, right) if dataset else _environment(name)


def _environment(text: str) -> Environment:
    factory = attribute(BUNDLED.get(text, text)) if ":" in text or text in BUNDLED else None
    if factory is None:
        known = ", ".join(BUNDLED)
        raise UsageError(f"no environment {text!r}: use one of {known}, or module:factory")
    made: Environment = factory()
    return made


def _dataset(path: Path, tools: str | None, score_by: str, right: float | None) -> Environment:
    if tools is None:
        raise UsageError("--dataset needs --tools: a module (or file) with the functions to call")
    if right is None:
        right = RIGHT_FROM.get(score_by, 1.0)
    rows, module = load_rows(path), ToolModule(load_module(tools))
    return DatasetEnvironment(path.stem, rows, module, scorer(score_by), right=right)


def _name(environment: Environment, model: str | None) -> str:
    return environment.model_name or Path(model or "model").name


def bundled_model(environment: str | None) -> Path:
    """The folder of the model that comes with an environment. Raises `UsageError`."""
    if environment is None or environment not in BUNDLED:
        raise UsageError("no model is bundled for this: use --upstream URL, or --model FOLDER")
    module = load_module(BUNDLED[environment].partition(":")[0])
    folder = Path(module.bundled_model())
    if not (folder / "config.json").is_file():
        raise UsageError(f"the bundled model of {environment} is missing: {folder} (use --model FOLDER)")
    return folder


def base_governance(environment: Environment, upstream: str, vocab_size: int | None) -> Governance:
    """The product's own defaults for these tools and this model, observing."""
    start = Markup().call[0]
    return Governance(
        vocab_size=vocab_size or UNKNOWN_VOCAB_SIZE,
        catalog=ToolCatalog(tuple(sorted(environment.read_only)), tuple(sorted(environment.effectful))),
        probe=ProbeSettings(
            call_start_id=call_start_id(upstream, start),
            call_start=start,
            chat_template_kwargs={"enable_thinking": False},
        ),
    )


def api_key() -> str | None:
    """From GOVERNOR_UPSTREAM__API_KEY, as for `governor serve`."""
    return os.environ.get("GOVERNOR_UPSTREAM__API_KEY")


def call_start_id(upstream: str, text: str) -> int | None:
    """The id of the token `text`; None where the server does not tell, or needs several tokens."""
    try:
        tokens = _asked(f"{upstream}/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    except (Unreachable, LookupError, TypeError):
        return None
    return int(tokens[0]) if isinstance(tokens, list) and len(tokens) == 1 else None


def first_model(upstream: str) -> str:
    """The name of the first model that is served. Raises `Unreachable`."""
    try:
        return str(_asked(f"{upstream}/v1/models", None)["data"][0]["id"])
    except (LookupError, TypeError):
        raise Unreachable(f"{upstream} does not say which models it serves: use --model") from None


def _asked(url: str, body: Mapping[str, Any] | None) -> Any:
    key = api_key()
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Unreachable(f"{url} does not answer: {error}") from None
