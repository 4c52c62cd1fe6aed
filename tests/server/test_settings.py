from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from governor.decision import Mode
from governor.policies import ObservePolicy, RulesPolicy, ThresholdPolicy
from governor.spans import SpanKind
from governor_server.errors import SettingsError
from governor_server.settings import UNKNOWN_VOCAB_SIZE, Settings

EXAMPLE = Path(__file__).parents[2] / Settings.EXAMPLE


def load(
    text: str = "", environ: dict[str, str] | None = None, *, tmp_path: Path, **overrides: object
) -> Settings:
    config = tmp_path / "governor.yaml"
    config.write_text(text)
    return Settings.load(config, overrides, environ or {})


def failure(text: str = "", environ: dict[str, str] | None = None, *, tmp_path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load(text, environ, tmp_path=tmp_path)
    return str(caught.value)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """Each layer replaces single keys of the ones below it, not whole sections."""
    settings = load(
        "server: {host: file, port: 1}\nprobe: {max_tokens: 7}",
        {"GOVERNOR_SERVER__PORT": "2", "GOVERNOR_SERVER__LOG_LEVEL": "debug"},
        tmp_path=tmp_path,
        server={"port": "3"},
    )
    assert settings.server.model_dump() == {
        "host": "file", "port": 3, "workers": 1, "log_level": "debug", "log_format": "text",
        "drain_delay_s": 2.0, "shutdown_grace_s": 10,
    }  # fmt: skip
    assert settings.probe.max_tokens == 7


@pytest.mark.parametrize("small", ["max_concurrent_requests", "max_queued_requests"])
def test_a_share_that_is_the_whole_is_refused(small: str, tmp_path: Path) -> None:
    """It would bound nothing, and look as if it did."""
    text = f"limits: {{{small}: 8, max_concurrent_requests_per_tenant: %d}}"
    assert "less than 8" in failure(text % 8, tmp_path=tmp_path)
    assert load(text % 7, tmp_path=tmp_path).limits.max_concurrent_requests_per_tenant == 7


def test_null_in_the_environment_is_nothing(tmp_path: Path) -> None:
    """A compose file can then leave a setting to a variable that may not be there."""
    environ = {"GOVERNOR_STORE__REDIS_URL": "null", "GOVERNOR_GOVERNANCE__VOCAB_SIZE": "null"}
    settings = load("governance: {vocab_size: 9}", environ, tmp_path=tmp_path)
    assert settings.store.redis_url is None
    assert settings.governance.vocab_size is None


def test_lists_and_mappings_are_json_in_the_environment(tmp_path: Path) -> None:
    """A shell has only strings."""
    environ = {
        "GOVERNOR_TOOLS__READ_ONLY": '["a", "b*"]',
        "GOVERNOR_GOVERNANCE__BUDGETS__PER_TOOL": '{"a": 3}',
    }
    settings = load(environ=environ, tmp_path=tmp_path)
    assert settings.tools.read_only == ("a", "b*")
    assert settings.governance.budgets.per_tool == {"a": 3}
    assert "GOVERNOR_TOOLS__READ_ONLY" in failure(
        environ={"GOVERNOR_TOOLS__READ_ONLY": "a,b"}, tmp_path=tmp_path
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("server: {prot: 1}", ["server.prot", "governor.yaml", "did you mean server.port?"]),
        ("server: {max_notices: 1}", ["did you mean governance.max_notices?"]),
        ("governance: {thresholds: {margn: 1}}", ["did you mean governance.thresholds.margin?"]),
        ("governence: {}", ["governence", "did you mean governance?"]),
        ("zzz: 1", ["zzz", "governor.example.yaml"]),
        ("governance: {mode: enforec}", ["governance.mode", "governor.yaml", "'enforce'", "'enforec'"]),
        (
            "governance: {thresholds: {margin: 2}}",
            ["governance.thresholds.margin", "less than or equal to 1"],
        ),
        ("upstream: {url: 'localhost:8000'}", ["upstream.url", "http://host:8000"]),
        ("{a: 1", ["not valid YAML"]),
        ("- a", ["sections"]),
        ("upstream: {url: 'http://a'}\nengine: {model: b}", ["upstream.url", "engine.model", "one of them"]),
        ("engine: {model: b, max_logprobs: 5}", ["top_logprobs", "max_logprobs (5)"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_file(
    text: str, parts: list[str], tmp_path: Path
) -> None:
    """Whoever reads it needs no source code to put it right."""
    message = failure(text, tmp_path=tmp_path)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tools: {read_only: search}", "must be a list, such as [one, two], not 'search'"),
        ("server: {port: two}", "must be a whole number, not 'two'"),
        ("server: {port: 1.5}", "must be a whole number, not 1.5"),
        ("server: {port: 99999}", "must be less than or equal to 65535, not 99999"),
        ("store: {ttl_s: 1d}", "must be a number, not '1d'"),
        ("observe: {probe: maybe}", "must be true or false, not 'maybe'"),
        ("observe: yes", "must be a section with keys, not True"),
        ("prices: {currency: 3}", "must be text, not 3"),
        ("prices: {per_call: 3}", "must be a mapping, such as {name: value}, not 3"),
        ("auth: {keys: [{tenant: acme}]}", "auth.keys.0.sha256 (from"),
        ("auth: {keys: [{tenant: acme}]}", "must be given"),
    ],
)
def test_a_wrong_value_is_told_in_words_of_yaml(text: str, told: str, tmp_path: Path) -> None:
    """Nobody who writes settings knows what a tuple is, or what a library calls a whole number."""
    message = failure(text, tmp_path=tmp_path)
    assert told in message
    assert "Input" not in message and "valid" not in message


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    """Whoever mends a file one mistake a start has many starts before him."""
    text = """\
server:
  prot: 1
governance:
  mode: enforec
  thresholds:
    margin: 2
auth:
  keys:
    - {tenant: acme, sha256: short}
zzz: 1
"""
    first, *rest = failure(text, {"GOVERNOR_PROBE__MAX_TOKENS": "x"}, tmp_path=tmp_path).split("\n  ")
    assert first == "6 mistakes in the settings:"
    told = {line.split(" (from ")[0].removeprefix("unknown setting "): line for line in rest}
    places = {"server.prot": 2, "governance.mode": 4, "governance.thresholds.margin": 6, "zzz": 10}
    assert set(told) == {*places, "auth.keys.0.sha256", "probe.max_tokens"}
    for name, line in places.items():
        assert f"governor.yaml, line {line})" in told[name]
    assert "governor.yaml, line 9)" in told["auth.keys.0.sha256"]
    assert "(from the environment)" in told["probe.max_tokens"]


def test_all_misspelt_variables_are_told_at_once(tmp_path: Path) -> None:
    """As all mistakes of a file are."""
    message = failure(environ={"GOVERNOR_SERVR__PORT": "1", "GOVERNOR_PROB__X": "1"}, tmp_path=tmp_path)
    assert "GOVERNOR_SERVR__PORT" in message and "GOVERNOR_PROB__X" in message


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"GOVERNOR_SERVR__PORT": "1"}, "did you mean section SERVER?"),
        ({"GOVERNOR_SERVER__PROT": "1"}, "did you mean server.port?"),
        ({"GOVERNOR_SERVER__PORT": "x"}, "server.port (from the environment)"),
        ({"GOVERNOR_CONFIG": "/no/such/file.yaml"}, "/no/such/file.yaml"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(environ: dict[str, str], part: str) -> None:
    """Variables are as easily misspelt as keys."""
    with pytest.raises(SettingsError, match="^[^\n]*$") as caught:
        Settings.load(environ=environ)
    assert part in str(caught.value)


def test_variables_of_an_orchestrator_are_no_mistakes(tmp_path: Path) -> None:
    """Kubernetes sets GOVERNOR_PORT=tcp://... for a service called governor."""
    environ = {"GOVERNOR_PORT": "tcp://10.0.0.1:80", "GOVERNOR_SERVICE_HOST": "10.0.0.1", "HOME": "/"}
    assert load(environ=environ, tmp_path=tmp_path).server == Settings().server


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_the_upstream_may_be_given_with_v1_or_without(url: str, tmp_path: Path) -> None:
    """Clients' base_url ends in /v1, vLLM's address does not."""
    assert load(f"upstream: {{url: '{url}'}}", tmp_path=tmp_path).upstream.url == "http://a:1"


def test_the_example_explains_every_key_and_has_the_defaults() -> None:
    """A key that is added without a line in the example fails here; so does a default that changed."""
    defaults = Settings().model_dump(mode="json")
    example = yaml.safe_load(EXAMPLE.read_text())
    records, gates = defaults["store"].pop("path"), defaults["calibration"].pop("path")
    assert example == defaults
    assert records.endswith("tool-governor/records.db")
    assert gates.endswith("tool-governor/gates.json")


def test_the_printed_settings_can_be_read_again(tmp_path: Path) -> None:
    """--print-config is a way to write the first file."""
    settings = load("governance: {mode: enforce}\ntools: {read_only: [a]}", tmp_path=tmp_path)
    assert load(settings.as_yaml(), tmp_path=tmp_path) == settings


def test_the_printed_settings_hide_the_key(tmp_path: Path) -> None:
    """They end up in bug reports."""
    settings = load("upstream: {api_key: hush}", tmp_path=tmp_path)
    assert "hush" not in settings.as_yaml()
    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "hush"


def test_the_core_is_configured_from_the_settings(tmp_path: Path) -> None:
    """Every setting that the core knows reaches it."""
    settings = load(
        """
governance: {mode: enforce, action: notice, thresholds: {margin: .8, entropy: .1}, top_logprobs: 7,
             max_notices: 1, budgets: {per_tool: {a: 2}, per_conversation: 9}, failing_attempts: 4,
             segment: [content]}
probe: {max_tokens: 5, chat_template_kwargs: {x: 1}}
tools: {read_only: [a], effectful: [b]}
markup: {call: ["[[", "]]"], ends: ["<eos>"]}
""",
        tmp_path=tmp_path,
    )
    core = settings.build_governance(call_start_id=42, vocab_size=1000)
    assert (core.mode, core.action, core.vocab_size) == (Mode.ENFORCE, "notice", 1000)
    assert (core.top_logprobs, core.max_notices, set(core.segment_kinds)) == (7, 1, {SpanKind.CONTENT})
    assert isinstance(core.policy, ThresholdPolicy)
    assert (core.policy.margin, core.policy.entropy) == (0.8, 0.1)
    assert core.policy.settings.failing_attempts == 4
    assert core.policy.settings.budgets.per_tool == {"a": 2}
    assert core.policy.settings.budgets.per_conversation == 9
    assert (core.probe.max_tokens, core.probe.top_logprobs, core.probe.call_start_id) == (5, 7, 42)
    assert (core.probe.call_start, core.probe.chat_template_kwargs) == ("[[", {"x": 1})
    assert (core.catalog.read_only, core.catalog.effectful) == (("a",), ("b",))
    assert (core.markup.call, core.markup.ends) == (("[[", "]]"), frozenset({"<eos>"}))


@pytest.mark.parametrize(
    ("name", "kind"), [("observe", ObservePolicy), ("rules", RulesPolicy), ("threshold", ThresholdPolicy)]
)
def test_a_policy_is_chosen_by_its_name(name: str, kind: type, tmp_path: Path) -> None:
    """The name in the settings is the name that decisions carry."""
    policy = load(f"governance: {{policy: {name}}}", tmp_path=tmp_path).build_governance(None, None).policy
    assert isinstance(policy, kind)
    assert policy.name == name


def test_a_configured_vocabulary_wins_and_an_unknown_one_is_assumed_large(tmp_path: Path) -> None:
    """An upper bound of the entropy stays one when nobody knows the vocabulary."""
    assert load(tmp_path=tmp_path).build_governance(None, None).vocab_size == UNKNOWN_VOCAB_SIZE
    settings = load("governance: {vocab_size: 7}", tmp_path=tmp_path)
    assert settings.build_governance(None, 1000).vocab_size == 7


def test_the_markup_of_a_call_may_be_named_by_vllms_parser(tmp_path: Path) -> None:
    """So that the two need not be looked up; the texts themselves work as before."""
    core = load("markup: {call: kimi_k2}", tmp_path=tmp_path).build_governance(None, None)
    assert core.markup.call == ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    assert core.probe.call_start == "<|tool_calls_section_begin|>"
    bare = load("markup: {call: pythonic}", tmp_path=tmp_path).build_governance(None, None)
    assert (bare.markup.call, bare.probe.call_start) == (("", ""), "")


def test_a_parser_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean hermes"):
        load("markup: {call: hermess}", tmp_path=tmp_path)
