"""The settings of training, as dataclasses for TRL's parser: flags, or keys of a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from trl.scripts.utils import TrlParser

from governor.calls import ToolCatalog
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
from governor.spans import SpanKind
from governor_training.errors import UsageError


def _help(text: str) -> dict[str, Any]:
    return {"help": text}


@dataclass
class RewardArguments:
    """The conventions of the entropy rewards; `governor.rewards.RewardSettings` explains each."""

    measure: str = field(default=Measure.REDUCTION.value, metadata=_help("reduction or gain"))
    against: str = field(default=Against.LOWEST.value, metadata=_help("lowest or previous"))
    relative: bool = field(default=False, metadata=_help("reductions as shares of the entropy before"))
    dead_zone: float = field(default=RewardSettings().dead_zone, metadata=_help("nats that are no reduction"))
    ramp: float = field(default=0.0, metadata=_help("nats over which a call comes to count in full"))
    spare_conflicts: bool = field(default=True, metadata=_help("leave out calls that raised good doubt"))
    unknown: str = field(
        default=Unknown.UNINFORMATIVE.value, metadata=_help("unmeasured calls: uninformative or left_out")
    )
    no_calls: float = field(default=1.0, metadata=_help("share of the score that no calls earn"))
    alpha: float = field(default=0.5, metadata=_help("weight of an informative call, dense reward"))
    over_calls: str = field(default=OverCalls.MEAN.value, metadata=_help("mean or sum, dense reward"))

    def settings(self) -> RewardSettings:
        """Raises `UsageError` for a value that cannot be used."""
        try:
            return RewardSettings(
                measure=Measure(self.measure),
                against=Against(self.against),
                relative=self.relative,
                dead_zone=self.dead_zone,
                ramp=self.ramp,
                spare_conflicts=self.spare_conflicts,
                unknown=Unknown(self.unknown),
                no_calls=self.no_calls,
                alpha=self.alpha,
                over_calls=OverCalls(self.over_calls),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass
class SpanArguments:
    """Which tokens a turn's entropy is taken over; `governor.rewards.SpanChoice` explains each."""

    segment: list[str] = field(
        default_factory=lambda: [SpanKind.REASONING.value, SpanKind.CONTENT.value],
        metadata=_help("reasoning, content, call, template"),
    )
    quote: int = field(default=SpanChoice().quote, metadata=_help("tokens in a row that are a quotation"))
    skip: int = field(default=0, metadata=_help("tokens at a segment's beginning that do not count"))
    last: int = field(default=0, metadata=_help("only so many tokens at its end; 0: all"))
    least: int = field(default=1, metadata=_help("fewer tokens than this have no entropy"))
    statistic: str = field(default=Statistic.MEAN.value, metadata=_help("mean, max or top_fifth"))
    measured_by: str = field(
        default=MeasuredBy.REFERENCE.value, metadata=_help("whose entropy: reference or policy")
    )

    def choice(self) -> SpanChoice:
        """Raises `UsageError` for a value that cannot be used."""
        try:
            return SpanChoice(
                kinds=frozenset(map(SpanKind, self.segment)),
                quote=self.quote,
                skip=self.skip,
                last=self.last,
                least=self.least,
                statistic=Statistic(self.statistic),
                measured_by=MeasuredBy(self.measured_by),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass
class ToolArguments:
    """What tools do, where the log does not say it."""

    read_only: list[str] = field(default_factory=list, metadata=_help("patterns of tools that only read"))
    effectful: list[str] = field(default_factory=list, metadata=_help("patterns of tools that do more"))

    def catalog(self) -> ToolCatalog:
        return ToolCatalog(tuple(self.read_only), tuple(self.effectful))


class Parser(TrlParser):
    """Tells a mistake in one line: the usage of five hundred flags helps nobody."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> tuple[Any, ...]:
        """The dataclasses, from the command line and the file that `--config` names. Raises `UsageError`."""
        try:
            found: tuple[Any, ...] = self.parse_args_and_config(args=arguments)
        except (OSError, ValueError) as error:
            raise UsageError(f"{error} (see {self.prog} --help)") from None
        return found
