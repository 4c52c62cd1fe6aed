"""The settings of training, as dataclasses for TRL's parser: flags, or keys of a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from trl.scripts.utils import TrlParser

from governor.calls import ToolCatalog
from governor.rewards import (
    Against,
    Measure,
    OverCalls,
    RewardSettings,
    SpanChoice,
    Statistic,
    Unknown,
)
from governor.spans import SpanKind
from governor_training.errors import UsageError

_SETTINGS, _CHOICE = RewardSettings(), SpanChoice()


def told(default: Any, text: str) -> Any:
    """A field with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class RewardArguments:
    """The conventions of the entropy rewards; `governor.rewards.RewardSettings` explains each."""

    measure: Measure = told(_SETTINGS.measure, "what says that a call told something: reduction or gain")
    against: Against = told(_SETTINGS.against, "the segment a reduction is measured against")
    relative: bool = told(_SETTINGS.relative, "reductions as shares of the entropy before")
    dead_zone: float = told(_SETTINGS.dead_zone, "nats that the measure must exceed")
    ramp: float = told(_SETTINGS.ramp, "nats over which a call's value grows from 0 to 1; 0: at once")
    spare_conflicts: bool = told(_SETTINGS.spare_conflicts, "never punish evidence against a belief")
    unknown: Unknown = told(_SETTINGS.unknown, "what a call without a measure counts as")
    no_calls: float = told(_SETTINGS.no_calls, "share of the score that no calls at all get, sparse reward")
    stake: float = told(_SETTINGS.stake, "share of the score that the calls decide, sparse reward")
    alpha: float = told(_SETTINGS.alpha, "weight of an informative call in the dense reward")
    over_calls: OverCalls = told(_SETTINGS.over_calls, "mean or sum of dense rewards as one figure")

    def reward_settings(self) -> RewardSettings:
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
                stake=self.stake,
                alpha=self.alpha,
                over_calls=OverCalls(self.over_calls),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass
class SpanArguments:
    """Which tokens a turn's entropy is taken over; `governor.rewards.SpanChoice` explains each."""

    span_kinds: list[str] = field(
        default_factory=lambda: sorted(_CHOICE.kinds),
        metadata={"help": "spans that a segment is made of: reasoning, content, call, template"},
    )
    quote: int = told(_CHOICE.quote, "leave out runs of so many tokens that a tool's result has; 0: none")
    skip: int = told(_CHOICE.skip, "tokens at the beginning of a segment that do not count")
    last: int = told(_CHOICE.last, "only so many tokens at its end; 0: all")
    least: int = told(_CHOICE.least, "a segment with fewer tokens has no entropy")
    statistic: Statistic = told(_CHOICE.statistic, "mean, max or top_fifth of the tokens' entropies")

    def span_choice(self) -> SpanChoice:
        """Measured by the model that training begins with. Raises `UsageError` for a value that cannot be
        used."""
        try:
            return SpanChoice(
                kinds=frozenset(map(SpanKind, self.span_kinds)),
                quote=self.quote,
                skip=self.skip,
                last=self.last,
                least=self.least,
                statistic=Statistic(self.statistic),
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass
class ToolArguments:
    """What tools do, where the log does not say it."""

    read_only: list[str] = field(default_factory=list, metadata={"help": "patterns of tools that only read"})
    effectful: list[str] = field(
        default_factory=list, metadata={"help": "patterns of tools that do more than read"}
    )

    def catalog(self) -> ToolCatalog:
        return ToolCatalog(tuple(self.read_only), tuple(self.effectful))


WITHOUT_ACCELERATOR = {"use_cpu": True, "bf16": False}
"""Defaults where there is no GPU: Transformers' own end in an error there."""


class Parser(TrlParser):
    """Tells a mistake in one line: the usage of five hundred flags helps nobody. Without a GPU training is
    on the CPU by default."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        known = {action.dest for action in self._actions}
        if not torch.accelerator.is_available():
            self.set_defaults(**{name: value for name, value in WITHOUT_ACCELERATOR.items() if name in known})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> tuple[Any, ...]:
        """The dataclasses, from the command line and the file that `--config` names. Raises `UsageError`."""
        try:
            found: tuple[Any, ...] = self.parse_args_and_config(args=arguments)
        except (OSError, ValueError) as error:
            raise UsageError(f"{error} (see {self.prog} --help)") from None
        return found
