"""One online training from its configuration to a model that can be exported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import ModelConfig, get_peft_config

from governor.rewards import Measure
from governor_training.environment import Environment, NotEnoughTasks, Split
from governor_training.errors import TrainingError, UsageError
from governor_training.evaluation.places import bundled_model, environment_of
from governor_training.finetuning.arguments import Parser
from governor_training.finetuning.backbone import quiet, without_vllm
from governor_training.finetuning.diagnosis import permit_dense
from governor_training.finetuning.online.config import EntropyGRPOConfig
from governor_training.finetuning.online.methods import Method, method
from governor_training.finetuning.parsers import ONLINE_ABOUT

if TYPE_CHECKING:
    from governor_training.finetuning.online.trainer import EntropyGRPOTrainer

SUMMARY = "run.json"
SETTINGS = "settings.json"
VOLATILE = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "overwrite",
        "threads",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "disable_tqdm",
        "logging_dir",
        "logging_steps",
        "log_completions",
        "num_completions_to_print",
        "save_steps",
        "save_total_limit",
        "local_rank",
        "max_steps",
        "num_train_epochs",
    }
)
"""Settings that may change when a run goes on: they are not what is trained, but where and how long."""


class FloorBroken(TrainingError):
    """The accuracy fell below its floor."""

    exit_code = 3


@dataclass
class OnlineArguments:
    """What is trained on, and for what."""

    environment: str = field(default="atlas", metadata={"help": "atlas, files or module:factory"})
    dataset: str | None = field(
        default=None, metadata={"help": "questions and answers instead, JSON Lines (see governor eval)"}
    )
    tools: str | None = field(default=None, metadata={"help": "the module (or file.py) with its tools"})
    scorer: str = field(default="f1", metadata={"help": "exact, contains, f1 or module:function"})
    right: float | None = field(
        default=None, metadata={"help": "the score from which an answer is right (1; with f1: 0.5)"}
    )
    tasks: int = field(default=512, metadata={"help": "training tasks"})
    tasks_seed: int = field(default=1, metadata={"help": "which ones"})
    eval_tasks: int = field(default=0, metadata={"help": "held-out tasks, for eval_strategy steps"})
    reward: str = field(
        default="sparse", metadata={"help": "sparse, dense, accuracy, otc, eapo or module:function"}
    )
    diagnosis: str | None = field(
        default=None, metadata={"help": "report of `governor train diagnose`, which the dense reward needs"}
    )
    undiagnosed: bool = field(
        default=False, metadata={"help": "dense without one: the entropies may mean nothing"}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads; 1 where others want the cores, or the model is tiny"}
    )
    overwrite: bool = field(default=False, metadata={"help": "begin anew where a run with other settings is"})


def parse(arguments: Sequence[str]) -> tuple[OnlineArguments, EntropyGRPOConfig, ModelConfig]:
    """From `--config file.yaml` and what overrides it. Raises `UsageError`; exits on `--help`."""
    parser = Parser(
        (OnlineArguments, EntropyGRPOConfig, ModelConfig),
        prog="governor train online",
        description=ONLINE_ABOUT,
    )
    try:
        options, config, model = parser.parse_args_and_config(list(arguments))
    except (ValueError, OSError, IndexError) as error:
        raise UsageError(str(error)) from None
    return options, config, model


def run(options: OnlineArguments, config: EntropyGRPOConfig, model: ModelConfig) -> Mapping[str, Any]:
    """Trains, and writes the model, `run.json` and the checkpoints to the configuration's `output_dir`.
    Returns what is in `run.json`. Raises `TrainingError`."""
    environment = environment_of(
        options.environment,
        Path(options.dataset) if options.dataset else None,
        options.tools,
        options.scorer,
        options.right,
    )
    chosen = method(options.reward)
    _check(options, config, chosen)
    start = model.model_name_or_path or str(bundled_model(None if options.dataset else options.environment))
    out = Path(config.output_dir)
    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = _checkpoint(out, config, _settings(options, config, model, start), options.overwrite)
    trainer = _trainer(start, options, config, model, environment, chosen)
    trainer.train(resume_from_checkpoint=checkpoint)
    return _finish(trainer, out)


def _trainer(
    start: str,
    options: OnlineArguments,
    config: EntropyGRPOConfig,
    model: ModelConfig,
    environment: Environment,
    chosen: Method,
) -> EntropyGRPOTrainer:
    quiet() if config.use_vllm else without_vllm()
    from transformers import AutoTokenizer

    from governor_training.finetuning.online.trainer import EntropyGRPOTrainer
    from governor_training.pretrained import check_model

    check_model(start)
    try:
        tasks = environment.tasks(options.tasks, options.tasks_seed, Split.TRAIN)
        wanted = options.eval_tasks
        eval_tasks = environment.tasks(wanted, options.tasks_seed, Split.HELD_OUT) if wanted else ()
    except NotEnoughTasks as error:
        raise UsageError(f"{error} (use fewer --tasks or --eval_tasks)") from None
    loading: dict[str, Any] = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    config.model_init_kwargs = {
        **{name: value for name, value in loading.items() if value is not None},
        **(config.model_init_kwargs or {}),
    }
    return EntropyGRPOTrainer(
        start,
        config,
        environment,
        tasks,
        chosen,
        tokenizer=AutoTokenizer.from_pretrained(start, padding_side="left", truncation_side="left"),
        peft_config=get_peft_config(model),
        eval_tasks=eval_tasks,
    )


def _check(options: OnlineArguments, config: EntropyGRPOConfig, chosen: Method) -> None:
    if chosen.entropies and Measure(config.measure) is Measure.GAIN:
        raise UsageError(
            "measure: gain needs forced answers, which are not asked for while training: use reduction, or "
            "governor train offline on labelled logs"
        )
    if chosen.per_call:
        permit_dense(options.diagnosis, undiagnosed=options.undiagnosed)


def _settings(
    options: OnlineArguments, config: EntropyGRPOConfig, model: ModelConfig, start: str
) -> dict[str, Any]:
    """What makes a run what it is, JSON-ready."""
    own = {one.name for one in fields(config)}
    every = {
        **{name: value for name, value in config.to_dict().items() if name in own},
        **asdict(model),
        **asdict(options),
        "model_name_or_path": start,
    }
    kept = {name: value for name, value in every.items() if name not in VOLATILE}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _checkpoint(
    out: Path, config: EntropyGRPOConfig, settings: Mapping[str, Any], overwrite: bool
) -> str | None:
    """Where to go on; None: at the beginning. Raises `UsageError` where a run with other settings is."""
    given = config.resume_from_checkpoint
    if given and given.lower() not in ("true", "auto"):
        return given
    path = out / SETTINGS
    last = None if overwrite else last_checkpoint(out)
    if last is not None and path.is_file():
        before = json.loads(path.read_text("utf-8"))
        changed = sorted(name for name in settings if before.get(name) != settings[name])
        if changed:
            told = ", ".join(f"{name} was {before.get(name)}" for name in changed[:4])
            raise UsageError(
                f"{out} has a run with other settings ({told}): choose another --output_dir, or --overwrite"
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return None if last is None else str(last)


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end; None where there is none. The trainer's state is
    the last file of one."""
    for folder in sorted(out.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        return folder
    return None


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _finish(trainer: EntropyGRPOTrainer, out: Path) -> Mapping[str, Any]:
    standing = trainer.guard.standing
    kept = True
    if standing.stopped:
        kept = trainer.roll_back()
    if kept:
        trainer.save_model(str(out))
    log = [entry for entry in trainer.state.log_history if "task/accuracy" in entry]
    summary = {
        "steps": trainer.state.global_step,
        "stopped": standing.stopped,
        "model_of": (standing.best if standing.stopped else "the last step") if kept else None,
        "first": _figures(log[: trainer.args.accuracy_window]),
        "last": _figures(log[-trainer.args.accuracy_window :]),
    }
    if trainer.args.should_save:
        (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    # A process that ends while its group still stands is at times aborted by the threads of the backend, and
    # its launcher then stops the one that is still writing.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if standing.stopped:
        told = f"the model in {out} is that of {standing.best}" if kept else "no checkpoint was above it"
        raise FloorBroken(f"{standing.stopped}; {told}; lower the learning rate, or raise beta")
    return summary


def _figures(log: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Means over some logged steps."""
    names = ("task/accuracy", "task/calls", "task/read_calls", "reward", "kl")
    return {
        name: sum(entry[name] for entry in log) / len(log)
        for name in names
        if log and all(entry.get(name) is not None for entry in log)
    }
