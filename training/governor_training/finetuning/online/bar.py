"""The progress bar of a training: what matters, in one line that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN: Mapping[str, str] = {
    "task/accuracy": "accuracy",
    "task/calls": "calls",
    "reward": "reward",
    "kl": "kl",
    "eval_task/accuracy": "held out",
}


class Bar(ProgressCallback):
    """Transformers' bar, without the forty figures of each step below it: they are in the logs."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {name: logs[key] for key, name in SHOWN.items() if logs and logs.get(key) is not None}
            if shown:
                self.training_bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
