"""What `governor train online` can be told, as TRL users know it: dataclasses, a YAML file, overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trl import GRPOConfig

from governor.rewards import MeasuredBy, SpanChoice
from governor_training.finetuning.arguments import RewardArguments, SpanArguments, told
from governor_training.finetuning.online.guard import Floor

_CHOICE, _FLOOR = SpanChoice(), Floor()


@dataclass
class EntropyGRPOConfig(RewardArguments, SpanArguments, GRPOConfig):
    """TRL's `GRPOConfig` with the conventions of the rewards (`governor.rewards`), the choice of tokens, and
    the floor under the accuracy. Of TRL's own defaults these are others: the KL term is on, each step is
    logged, and completions are written to files without being printed."""

    beta: float = told(0.02, "weight of the KL term that holds the policy near the reference; 0: none")
    logging_steps: float = told(1, "steps between two logs")
    log_completions: bool = told(True, "write the completions of each logged step to `completions/`")
    num_completions_to_print: int | None = told(0, "how many of them are printed, too")
    max_turns: int = told(8, "turns of the model in one rollout")

    call_weight: float = told(1.0, "weight of a call's own advantage beside its rollout's, dense reward")
    measured_by: MeasuredBy = told(_CHOICE.measured_by, "whose entropies: reference or policy")

    accuracy_floor: float | None = told(
        _FLOOR.accuracy, "the run stops below this accuracy; default: the beginning's less accuracy_drop"
    )
    accuracy_drop: float = told(_FLOOR.drop, "how much accuracy may be lost, where there is no floor")
    accuracy_window: int = told(_FLOOR.window, "generations that the accuracy is averaged over")

    def span_choice(self) -> SpanChoice:
        """Raises `UsageError` for a value that cannot be used."""
        return replace(super().span_choice(), measured_by=MeasuredBy(self.measured_by))

    def floor(self) -> Floor:
        return Floor(self.accuracy_floor, self.accuracy_drop, self.accuracy_window)
