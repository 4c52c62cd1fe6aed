"""The core's whole configuration, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.experiment import Experiment
from governor.policies import ObservePolicy, Policy
from governor.probe import ProbeSettings
from governor.pruning import PruneSettings
from governor.rules import RuleSettings
from governor.spans import FREE_KINDS, Markup, SpanKind

ActionChoice = Literal["auto", "answer", "notice"]


@dataclass(frozen=True, slots=True)
class Governance:
    """How requests are governed. `vocab_size` is the model's; `catalog` holds the configured patterns, to
    which each request adds its tools' annotations; `segment_kinds` are the spans that the segment's mean
    entropy is taken over; `rules` are those that the records tell of, whatever the policy makes of them."""

    vocab_size: int
    mode: Mode = Mode.OBSERVE
    action: ActionChoice = "auto"
    policy: Policy = field(default_factory=ObservePolicy)
    catalog: ToolCatalog = field(default_factory=ToolCatalog)
    markup: Markup = field(default_factory=Markup)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    top_logprobs: int = 20
    segment_kinds: frozenset[SpanKind] = FREE_KINDS
    max_notices: int = 2
    rules: RuleSettings = field(default_factory=RuleSettings)
    experiment: Experiment = field(default_factory=Experiment)
    pruning: PruneSettings = field(default_factory=PruneSettings)
