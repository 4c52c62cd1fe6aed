"""Every setting of the proxy, read once at start from a YAML file, the environment and the command line.

Later wins: built-in default, file, environment (`GOVERNOR_SECTION__KEY`), command line. An unknown key is an
error, because a misspelt threshold that is silently ignored is worse than a proxy that does not start.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError
from pydantic_settings.sources.utils import parse_env_vars

from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.experiment import Experiment
from governor.governance import Governance
from governor.policies import Policy, PolicyError
from governor.prices import Prices
from governor.probe import ProbeSettings as CoreProbeSettings
from governor.pruning import PrunePolicy, PruneSettings
from governor.results import compiled
from governor.rules import Budgets, RuleSettings
from governor.spans import Markup, SpanKind
from governor.tool_parsers import BY_NAME, SOURCE
from governor_server import policies
from governor_server.access import AuthSettings
from governor_server.balancer import UpstreamSettings
from governor_server.errors import SettingsError
from governor_server.limits import LimitSettings
from governor_server.sections import Count, Money, Port, Seconds, Section, Share
from governor_server.tables import IN_MEMORY

CONFIG_VARIABLE = "GOVERNOR_CONFIG"
DEFAULT_CONFIG = Path("governor.yaml")
ENV_PREFIX = "GOVERNOR_"
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

PLAIN: Mapping[str, str] = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    "string_type": "must be text",
    "tuple_type": "must be a list, such as [one, two]",
    **dict.fromkeys(("dict_type", "mapping_type"), "must be a mapping, such as {name: value}"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type"), "must be a section with keys"),
}
"""What pydantic's types of errors mean to somebody who writes YAML."""

UNKNOWN_VOCAB_SIZE = 262_144
"""Where nobody can tell: as large as the largest common vocabulary, so that an upper bound remains one."""


class ServerSettings(Section):
    """Where the proxy listens."""

    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Count = 1
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_delay_s: float = Field(default=2.0, ge=0)
    shutdown_grace_s: Count = 10


class EngineSettings(Section):
    """vLLM as a child process; used when `model` is set."""

    model: str | None = None
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: Port = 0
    tool_parser: str = "hermes"
    reasoning_parser: str | None = None
    max_logprobs: int = Field(default=20, ge=-1)
    max_model_len: Count | None = None
    max_num_seqs: Count | None = None
    dtype: str | None = None
    cpu_kv_cache_gib: Count = 1
    cpu_threads: str | None = None
    start_timeout_s: Seconds = 600.0
    quick_death_s: Seconds = 60.0
    max_quick_deaths: Count = 3
    log_file: Path | None = None
    extra_args: tuple[str, ...] = ()


class ThresholdSettings(Section):
    """When a forced answer is confident: both must hold."""

    margin: float = Field(default=0.9, ge=0, le=1)
    entropy: float = Field(default=0.5, ge=0)


class BudgetSettings(Section):
    """How many read-only calls a conversation may make; none means no limit."""

    per_tool: Mapping[str, Count] = Field(default_factory=dict)
    per_conversation: Count | None = None


class GovernanceSettings(Section):
    """How calls are judged and what becomes of those withheld."""

    mode: Literal["observe", "enforce"] = "observe"
    action: Literal["auto", "answer", "notice"] = "auto"
    policy: str = "threshold"
    thresholds: ThresholdSettings = ThresholdSettings()
    budgets: BudgetSettings = BudgetSettings()
    failing_attempts: Count = 2
    parameters: Mapping[str, Any] = Field(default_factory=dict, validate_default=True)
    top_logprobs: int = Field(default=20, ge=1)
    vocab_size: int | None = Field(default=None, ge=2)
    max_notices: int = Field(default=2, ge=0)
    segment: tuple[Literal["reasoning", "content"], ...] = Field(
        default=("reasoning", "content"), min_length=1
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            policies.kind(name)
        except PolicyError as error:
            raise ValueError(error.detail) from None
        return name

    @field_validator("parameters")
    @classmethod
    def _usable(cls, parameters: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        """A parameter that the policy does not have is told now, and not when the first request comes."""
        try:
            if "policy" in info.data:
                policies.policy(info.data["policy"], parameters)
        except PolicyError as error:
            raise ValueError(error.detail) from None
        return parameters

    def rules(self) -> RuleSettings:
        """Those of tier 0."""
        return RuleSettings(
            Budgets(self.budgets.per_conversation, self.budgets.per_tool), self.failing_attempts
        )

    def build_policy(self) -> Policy:
        """The policy. `parameters` win over the settings that the rules and the threshold have of old."""
        rules = {"failing_attempts": self.failing_attempts, **self.budgets.model_dump()}
        own: Mapping[str, Any] = {"rules": rules, "threshold": rules | self.thresholds.model_dump()}
        return policies.policy(self.policy, {**own.get(self.policy, {}), **self.parameters})


class ExperimentSettings(Section):
    """What is drawn by lot, so that the effect of governing and the gate's mistakes are seen. Shares."""

    holdout: Share = 0.05
    exploration: Share = 0.05
    labels: Share = 0.1
    max_labels: int = Field(default=16, ge=0)
    salt: str = ""


class PruningSettings(Section):
    """Which results the model need not see again."""

    policy: PrunePolicy = "none"
    min_tokens: int = Field(default=64, ge=0)
    batch_tokens: int = Field(default=256, ge=0)
    keep_last: int = Field(default=5, ge=0)
    expected_turns: float = Field(default=3.0, ge=0)


class CalibrationSettings(Section):
    """The calibrated gate (`governance.policy: calibrated`). `path` is where the gates are kept."""

    max_harm: float = Field(default=0.02, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    renew_s: Seconds = 30.0
    path: str = Field(default_factory=lambda: str(_state_home() / "gates.json"))


class ObserveSettings(Section):
    """What is measured while nothing is withheld."""

    probe: bool = True


class ProbeSettings(Section):
    """The forced answer that is asked for before a call is judged."""

    max_tokens: Count = 48
    timeout_s: Seconds = 10.0
    chat_template_kwargs: Mapping[str, Any] = Field(default_factory=lambda: {"enable_thinking": False})
    call_start_token: str | None = None


class ToolSettings(Section):
    """Shell patterns of tool names; one that is neither read-only nor effectful is observed, never withheld.
    `failures` are regular expressions of the beginnings of results."""

    read_only: tuple[str, ...] = ()
    effectful: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @field_validator("failures")
    @classmethod
    def _expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                compiled([pattern])
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns

    def catalog(self) -> ToolCatalog:
        """The core's."""
        failures = compiled(self.failures)
        return ToolCatalog(self.read_only, self.effectful, volatile=self.volatile, failures=failures)


class MarkupSettings(Section):
    """The tokens with which the model's chat template marks spans. `call` may be the name of the tool parser
    that vLLM runs with."""

    reasoning: tuple[str, str] = ("<think>", "</think>")
    call: tuple[str, str] | str = ("<tool_call>", "</tool_call>")
    ends: tuple[str, ...] = tuple(sorted(Markup().ends))

    @field_validator("call")
    @classmethod
    def _known(cls, call: tuple[str, str] | str) -> tuple[str, str] | str:
        if isinstance(call, str) and call not in BY_NAME:
            near = difflib.get_close_matches(call, BY_NAME, 1)
            meant = f": did you mean {near[0]}?" if near else f", of those of {SOURCE}"
            raise ValueError(f"{call} is no tool parser{meant}")
        return call

    @property
    def call_markers(self) -> tuple[str, str]:
        """What opens and closes a call; "" for what the format does not have."""
        if not isinstance(self.call, str):
            return self.call
        parser = BY_NAME[self.call]
        return next(iter(parser.opening), ""), parser.closing


class StoreSettings(Section):
    """Where records of calls are kept, how many and how long, and the Redis through which several processes
    share them. `keep_conversations`: with all that was said, to fine-tune a model on."""

    path: str = Field(default_factory=lambda: str(_state_home() / "records.db"))
    redis_url: SecretStr | None = None
    max_records: Count = 20_000
    ttl_s: Seconds = 7 * 24 * 3600.0
    keep_text: bool = False
    keep_conversations: bool = False


class TracingSettings(Section):
    """Spans and metrics of OpenTelemetry. `content` records what is said, too."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s]+[^\s]*$")
    sample: Share = 1.0
    content: bool = False


class StreamSettings(Section):
    """What a client hears while the governor holds a part of its stream back."""

    max_silence_s: Seconds = 4.0


class PriceSettings(Section):
    """What tokens and tool calls cost, for the dashboard."""

    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    prompt_per_million: Money = 0.0
    completion_per_million: Money = 0.0
    per_call: Mapping[str, Money] = Field(default_factory=dict)

    def build(self) -> Prices:
        """The core's prices."""
        return Prices(self.prompt_per_million, self.completion_per_million, dict(self.per_call))


class Settings(BaseSettings):
    """All settings, frozen. Made by `load`; calling the class reads neither file nor environment."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
        case_sensitive=False,
    )
    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    engine: EngineSettings = EngineSettings()
    governance: GovernanceSettings = GovernanceSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    calibration: CalibrationSettings = Field(default_factory=CalibrationSettings)
    pruning: PruningSettings = PruningSettings()
    observe: ObserveSettings = ObserveSettings()
    probe: ProbeSettings = ProbeSettings()
    tools: ToolSettings = ToolSettings()
    markup: MarkupSettings = MarkupSettings()
    stream: StreamSettings = StreamSettings()
    store: StoreSettings = Field(default_factory=StoreSettings)
    tracing: TracingSettings = TracingSettings()
    prices: PriceSettings = PriceSettings()

    EXAMPLE: ClassVar[str] = "governor.example.yaml"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: it knows where each value came from, and names it in an error."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.engine.model is not None and self.upstream.replicas:
            raise ValueError("upstream.replicas are of upstream.url: engine.model has none")
        if self.upstream.url is not None and self.engine.model is not None:
            raise ValueError("upstream.url and engine.model are both set: keep one of them")
        # Of the store, too: an error of a section shows what was given, and its address may hold a password.
        if self.store.keep_conversations and self.store.path == IN_MEMORY:
            raise ValueError("store.keep_conversations needs a file: give store.path one")
        room = min(self.limits.max_concurrent_requests, self.limits.max_queued_requests)
        if (self.limits.max_concurrent_requests_per_tenant or 0) >= room:
            raise ValueError(
                f"limits.max_concurrent_requests_per_tenant must be less than {room}, or one tenant could "
                "take all of limits.max_concurrent_requests or limits.max_queued_requests"
            )
        redis = self.store.redis_url
        if redis is not None and not redis.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError(f"store.redis_url must begin with one of {', '.join(REDIS_SCHEMES)}")
        if redis is None and self.server.workers > 1:
            raise ValueError(
                f"server.workers is {self.server.workers}, and workers know each other's calls only through "
                "Redis: set store.redis_url (redis://127.0.0.1:6379), or server.workers to 1"
            )
        allowed = self.engine.max_logprobs
        if self.engine.model is not None and 0 <= allowed < self.governance.top_logprobs:
            raise ValueError(
                f"governance.top_logprobs is more than engine.max_logprobs ({allowed}): raise that one"
            )
        return self

    @classmethod
    def load(
        cls,
        config: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Read the settings.

        `config` is the YAML file; without it `GOVERNOR_CONFIG`, then `governor.yaml` if there is one.
        `overrides` is a nested mapping like the file's, from the command line.
        Raises `SettingsError`, whose text has a line for each mistake.
        """
        environ = os.environ if environ is None else environ
        layers = Layers.read(config, overrides or {}, environ)
        try:
            return cls(**layers.merged())
        except ValidationError as error:
            raise SettingsError(_explain(error, layers)) from None

    def as_yaml(self) -> str:
        """The settings in the form of the file; secrets are masked."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)
        return text

    def build_governance(self, call_start_id: int | None, vocab_size: int | None) -> Governance:
        """The core's configuration.

        `call_start_id` is the id of the token that opens a tool call and `vocab_size` the number of tokens in
        the model's vocabulary, both as the upstream told; a configured `governance.vocab_size` wins.
        """
        governance = self.governance
        return Governance(
            vocab_size=governance.vocab_size or vocab_size or UNKNOWN_VOCAB_SIZE,
            mode=Mode(governance.mode),
            action=governance.action,
            policy=governance.build_policy(),
            catalog=self.tools.catalog(),
            markup=Markup(self.markup.reasoning, self.markup.call_markers, frozenset(self.markup.ends)),
            probe=CoreProbeSettings(
                max_tokens=self.probe.max_tokens,
                top_logprobs=governance.top_logprobs,
                call_start_id=call_start_id,
                call_start=self.call_start_token,
                chat_template_kwargs=self.probe.chat_template_kwargs,
            ),
            top_logprobs=governance.top_logprobs,
            segment_kinds=frozenset(SpanKind(kind) for kind in governance.segment),
            max_notices=governance.max_notices,
            rules=governance.rules(),
            experiment=Experiment(**self.experiment.model_dump()),
            pruning=PruneSettings(**self.pruning.model_dump()),
        )

    @property
    def call_start_token(self) -> str:
        """The text of the token that opens a tool call."""
        return self.probe.call_start_token or self.markup.call_markers[0]


Location = tuple[str | int, ...]


class Layers:
    """The places that settings come from, least important first, each with the name to use in a message.
    `lines` has the line of each key of the file."""

    def __init__(self, *named: tuple[str, Mapping[str, Any]], lines: Mapping[Location, int]) -> None:
        self.named = named
        self._lines = lines

    @classmethod
    def read(cls, config: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Raises `SettingsError` for a file or a variable that cannot be read."""
        path = _config_path(config, environ)
        file, lines = _read_yaml(path) if path else ({}, {})
        variables = _read_environment(environ)
        named = ((str(path), file), ("the environment", variables), ("the command line", overrides))
        return cls(*named, lines=lines)

    def merged(self) -> dict[str, Any]:
        """One nested mapping; later layers win key by key."""
        result: dict[str, Any] = {}
        for _, layer in self.named:
            _merge(result, layer)
        return result

    def origin(self, location: Location) -> str | None:
        """The name of the most important layer that has this key, and the line in the file."""
        for name, layer in self.named[::-1]:
            if _has(layer, location):
                line = self._lines.get(location) if layer is self.named[0][1] else None
                return name if line is None else f"{name}, line {line}"
        return None


def _state_home() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "tool-governor"


def _config_path(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is not None:
        return config
    named = environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


def _read_yaml(path: Path) -> tuple[Mapping[str, Any], Mapping[Location, int]]:
    """What a file holds, and on which line each key stands."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise SettingsError(
            f"no such configuration file: {path} (copy {Settings.EXAMPLE}, or leave --config out)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {_one_line(str(error))}") from None
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold sections with keys (see {Settings.EXAMPLE})")
    sections = {str(key): ({} if value is None else value) for key, value in content.items()}
    return sections, dict(_key_lines(yaml.compose(text, yaml.SafeLoader)))


def _key_lines(node: yaml.Node | None, prefix: Location = ()) -> Iterator[tuple[Location, int]]:
    """The location of each key below a node, and its line, counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            location = (*prefix, str(key.value))
            yield location, key.start_mark.line + 1
            yield from _key_lines(value, location)
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield (*prefix, place), item.start_mark.line + 1
            yield from _key_lines(item, (*prefix, place))


def _read_environment(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """Only names with `__` are ours: orchestrators set GOVERNOR_PORT and the like for a service so named."""
    ours = {
        name: value for name, value in environ.items() if name.upper().startswith(ENV_PREFIX) and "__" in name
    }
    sections = {name: name[len(ENV_PREFIX) :].split("__")[0].lower() for name in ours}
    unknown = [
        f"unknown variable {name}{_suggest(section, Settings.model_fields, 'section ')}"
        for name, section in sections.items()
        if section not in Settings.model_fields
    ]
    if unknown:
        raise SettingsError(_together(unknown))
    source = EnvSettingsSource(Settings)
    source.env_vars = parse_env_vars(ours, parse_none_str=source.env_parse_none_str)
    try:
        return source()
    except SourceError as error:
        section = str(error).split('"')[1]
        names = ", ".join(name for name in ours if name.upper().startswith(f"{ENV_PREFIX}{section.upper()}"))
        raise SettingsError(
            f"{names}: a list or a mapping is written as JSON here, such as '[\"search*\"]'"
        ) from None


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            _merge(old, value)
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _has(layer: Mapping[str, Any], location: Location) -> bool:
    here: Any = layer
    for part in location:
        try:
            here = here[part]
        except (LookupError, TypeError):
            return False
    return True


def _explain(error: ValidationError, layers: Layers) -> str:
    """A line for each of the errors: the key, where it stands, what is wrong, what would be right."""
    return _together([_line(each, layers) for each in error.errors()])


def _together(mistakes: Sequence[str]) -> str:
    """One mistake is one line; several are a list, so that a file is mended at once."""
    if len(mistakes) == 1:
        return mistakes[0]
    return "\n  ".join([f"{len(mistakes)} mistakes in the settings:", *mistakes])


def _line(error: ErrorDetails, layers: Layers) -> str:
    location = error["loc"]
    name = ".".join(str(part) for part in location)
    origin = next(
        (found for stop in range(len(location), 0, -1) if (found := layers.origin(location[:stop]))), None
    )
    where = f" (from {origin})" if origin else ""
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name}{where}{_suggest_setting(name)}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not location:
        return message
    if error["type"] == "missing":
        return f"{name}{where}: must be given"
    return f"{name}{where}: {PLAIN.get(error['type'], message)}, not {error['input']!r}"


def _suggest_setting(name: str) -> str:
    known = list(_setting_names(Settings))
    *parents, leaf = name.split(".")
    elsewhere = [other for other in known if other.split(".")[-1] == leaf]
    if len(elsewhere) == 1:
        return f": did you mean {elsewhere[0]}?"
    siblings = [other for other in known if other.split(".")[:-1] == parents]
    close = difflib.get_close_matches(name, siblings, n=1) or difflib.get_close_matches(name, known, n=1)
    if close:
        return f": did you mean {close[0]}?"
    return f": remove it, or see {Settings.EXAMPLE} for all settings"


def _suggest(word: str, known: Mapping[str, Any], kind: str) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {kind}{close[0].upper()}?" if close else f": remove it, or see {Settings.EXAMPLE}"


def _setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        candidates = (field.annotation, *get_args(field.annotation))
        for kind in candidates:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from _setting_names(kind, f"{prefix}{name}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
