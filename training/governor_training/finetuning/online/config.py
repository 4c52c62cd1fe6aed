"""What `governor train online` can be told, as TRL users know it: dataclasses, a YAML file, overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from governor.rewards import (
    Against,
    Measure,
    MeasuredBy,
    OverCalls,
    RewardSettings,
    SpanChoice,
    Statistic,
    Unknown,
)
from governor.spans import FREE_KINDS, SpanKind
from governor_training.finetuning.online.guard import Floor

_SETTINGS, _CHOICE, _FLOOR = RewardSettings(), SpanChoice(), Floor()


def _told(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class EntropyGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` with the conventions of the rewards (`governor.rewards`), the choice of tokens, and
    the floor under the accuracy. Of TRL's own defaults these are others: the KL term is on, each step is
    logged, and completions are written to files without being printed."""

    beta: float = _told(0.02, "weight of the KL term that holds the policy near the reference; 0: none")
    logging_steps: float = _told(1, "steps between two logs")
    log_completions: bool = _told(True, "write the completions of each logged step to `completions/`")
    num_completions_to_print: int | None = _told(0, "how many of them are printed, too")
    max_turns: int = _told(8, "turns of the model in one rollout")

    measure: Measure = _told(_SETTINGS.measure, "what says that a call told something: reduction or gain")
    against: Against = _told(_SETTINGS.against, "the segment a reduction is measured against")
    relative: bool = _told(_SETTINGS.relative, "reductions as shares of the entropy before")
    dead_zone: float = _told(_SETTINGS.dead_zone, "nats that the measure must exceed")
    ramp: float = _told(_SETTINGS.ramp, "nats over which a call's value grows from 0 to 1; 0: at once")
    spare_conflicts: bool = _told(_SETTINGS.spare_conflicts, "never punish evidence against a belief")
    unknown: Unknown = _told(_SETTINGS.unknown, "what a call without a measure counts as")
    no_calls: float = _told(_SETTINGS.no_calls, "share of the score that no calls at all get, sparse reward")
    stake: float = _told(_SETTINGS.stake, "share of the score that the calls decide, sparse reward")
    alpha: float = _told(_SETTINGS.alpha, "weight of an informative call in the dense reward")
    over_calls: OverCalls = _told(_SETTINGS.over_calls, "mean or sum of dense rewards as one figure")
    call_weight: float = _told(1.0, "weight of a call's own advantage beside its rollout's, dense reward")

    span_kinds: list[str] = field(
        default_factory=lambda: sorted(FREE_KINDS),
        metadata={"help": "spans that a segment is made of: reasoning, content, call, template"},
    )
    quote: int = _told(_CHOICE.quote, "leave out runs of so many tokens that a tool's result has; 0: none")
    skip: int = _told(_CHOICE.skip, "tokens at the beginning of a segment that do not count")
    last: int = _told(_CHOICE.last, "only so many tokens at its end; 0: all")
    least: int = _told(_CHOICE.least, "a segment with fewer tokens has no entropy")
    statistic: Statistic = _told(_CHOICE.statistic, "mean, max or top_fifth of the tokens' entropies")
    measured_by: MeasuredBy = _told(_CHOICE.measured_by, "whose entropies: reference or policy")

    accuracy_floor: float | None = _told(
        _FLOOR.accuracy, "the run stops below this accuracy; default: the beginning's less accuracy_drop"
    )
    accuracy_drop: float = _told(_FLOOR.drop, "how much accuracy may be lost, where there is no floor")
    accuracy_window: int = _told(_FLOOR.window, "generations that the accuracy is averaged over")

    def reward_settings(self) -> RewardSettings:
        """Raises ValueError on a value out of range."""
        return RewardSettings(
            measure=Measure(self.measure),
            against=Against(self.against),
            relative=self.relative,
            dead_zone=self.dead_zone,
            ramp=self.ramp,
            spare_conflicts=self.spare_conflicts,
            unknown=Unknown(self.unknown),
            no_calls=self.no_calls,
            stake=self.stake,
            alpha=self.alpha,
            over_calls=OverCalls(self.over_calls),
        )

    def span_choice(self) -> SpanChoice:
        """Raises ValueError on a value out of range, or a kind of span that there is not."""
        return SpanChoice(
            kinds=frozenset(SpanKind(kind) for kind in self.span_kinds),
            quote=self.quote,
            skip=self.skip,
            last=self.last,
            least=self.least,
            statistic=Statistic(self.statistic),
            measured_by=MeasuredBy(self.measured_by),
        )

    def floor(self) -> Floor:
        return Floor(self.accuracy_floor, self.accuracy_drop, self.accuracy_window)
