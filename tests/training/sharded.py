"""One of two processes without a GPU that train with a configuration of accelerate.

    torchrun --nproc-per-node 2 tests/training/sharded.py FILE ARGUMENTS...

FILE is a configuration of `accelerate launch`, or - for plain data parallelism; ARGUMENTS are those of
`governor train online`. Accelerate shards over GPUs only, PyTorch and DeepSpeed over whatever there is: that
there is none is kept from accelerate where it decides.
"""

from __future__ import annotations

import os
import sys
from typing import Any

NONE = "-"


def environment(file: str) -> dict[str, str]:
    """What `accelerate launch` would set for a configuration."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    parser = launch_command_parser()
    processes = os.environ["WORLD_SIZE"]
    told = ["--config_file", file, "--num_processes", processes, "--mixed_precision", "no", "script"]
    arguments, defaults, _ = _validate_launch_command(parser.parse_args(told))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        found = dict(prepare_deepspeed_cmd_env(arguments)[1])
    else:
        found = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in found.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def shard_without_gpus() -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def main() -> int:
    file, *arguments = sys.argv[1:]
    if file != NONE:
        os.environ.update(environment(file))
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            # DeepSpeed has a CPU of its own kind, which is no CPU to accelerate.
            os.environ["DS_ACCELERATOR"] = "cpu"
            arguments += ["--use_cpu", "false", "--ddp_backend", "gloo"]
        else:
            shard_without_gpus()
    import torch

    from governor_training.finetuning.online_command import run

    code = run(arguments)
    assert not torch.distributed.is_initialized(), "a process ends within its group, and may be aborted"
    return code


if __name__ == "__main__":
    sys.exit(main())
