"""A trained model in a form that vLLM loads, under a name that says which one it is, and a check that the
model that is served is that one.

Each export is a folder `NAME-vN` of its own and is never written again: a server that holds the name of one
holds exactly those weights. `export.json` in it says where it came from and what its weights' digest is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from governor_training.errors import TrainingError, Unreachable, UsageError

MANIFEST = "export.json"
ADAPTER = "adapter_config.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TIMEOUT_S = 120.0


class Form(StrEnum):
    """WEIGHTS are a whole model; an ADAPTER is loaded on top of its base, also into a running server."""

    ADAPTER = "adapter"
    WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `base` is the model that an adapter belongs to, "" for whole weights; `rank` is the
    adapter's. `digest` is that of all weight files."""

    name: str
    folder: Path
    form: Form
    base: str
    rank: int
    digest: str
    source: str

    def manifest(self) -> dict[str, Any]:
        return {**asdict(self), "folder": self.folder.name}

    def command(self) -> str:
        """How vLLM is started with it."""
        if self.form is Form.WEIGHTS:
            return f"vllm serve {self.folder} --served-model-name {self.name}"
        return (
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {self.base} --enable-lora "
            f"--max-lora-rank {_vllm_rank(self.rank)} --lora-modules {self.name}={self.folder}"
        )


def _vllm_rank(rank: int) -> int:
    """The least rank that vLLM can be told which has room for it."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def export(source: Path, out: Path, name: str, *, merge: bool = False, dtype: str | None = None) -> Export:
    """Writes the model in `source` (a folder of a run, or a checkpoint) to `out / NAME-vN`.

    With `merge` an adapter is added to its base's weights. `dtype` is that of whole weights; None: the one
    that the base was published in. Raises `UsageError`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{name!r} is no name for a served model: use letters, digits, dots and dashes")
    is_adapter = (source / ADAPTER).is_file()
    if not is_adapter and not (source / "config.json").is_file():
        raise UsageError(f"{source} has neither a model nor an adapter: give the folder of a run")
    versioned = f"{name}-v{_next_version(out, name)}"
    out.mkdir(parents=True, exist_ok=True)
    with _written(out / versioned) as folder:
        if is_adapter and not merge:
            form, base, rank = Form.ADAPTER, *_adapter(source)
            _copy(source, folder, ADAPTER_FILES)
        else:
            form, base, rank = Form.WEIGHTS, "", 0
            _whole(source, folder, is_adapter, dtype)
        made = Export(versioned, out / versioned, form, base, rank, digest(folder), str(source))
        (folder / MANIFEST).write_text(json.dumps(made.manifest(), indent=2) + "\n", "utf-8")
    return made


def read(folder: Path) -> Export:
    """What `export` wrote to `folder`. Raises `UsageError` where it did not, or the weights have changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        made = Export(**{**manifest, "folder": folder, "form": Form(manifest["form"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder} is no export ({error}): make one with governor train export") from None
    if digest(folder) != made.digest:
        raise UsageError(f"the weights in {folder} are not those that were exported: export them again")
    return made


def digest(folder: Path) -> str:
    """SHA-256 over the weight files of a folder, by name and content."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _next_version(out: Path, name: str) -> int:
    pattern = re.compile(re.escape(name) + r"-v(\d+)")
    found = [pattern.fullmatch(path.name) for path in (out.iterdir() if out.is_dir() else ())]
    return 1 + max((int(match[1]) for match in found if match), default=0)


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A folder that is there only when all of it is: nobody loads half of a model."""
    making = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        yield making
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    making.rename(folder)


def _copy(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            shutil.copy2(path, folder / path.name)


def _adapter(source: Path) -> tuple[str, int]:
    """Base and rank. Raises `UsageError` for what vLLM does not load as an adapter."""
    config = json.loads((source / ADAPTER).read_text("utf-8"))
    if config.get("peft_type") != "LORA":
        raise UsageError(f"vLLM loads LoRA adapters only, this is {config.get('peft_type')}: use --merge")
    reason = next((name for name in ("use_dora", "modules_to_save") if config.get(name)), None)
    if reason:
        raise UsageError(f"vLLM does not load adapters with {reason}: use --merge")
    return str(config["base_model_name_or_path"]), int(config["r"])


def _whole(source: Path, folder: Path, is_adapter: bool, dtype: str | None) -> None:
    base = _adapter_base(source) if is_adapter else str(source)
    # In float32: what an adapter adds is smaller than bfloat16 can tell apart step by step.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if is_adapter:
        model = PeftModel.from_pretrained(model, str(source)).merge_and_unload()
    model.to(getattr(torch, dtype or _published(source, base))).save_pretrained(folder)
    own = (source / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(source if own else base).save_pretrained(folder)


def _adapter_base(source: Path) -> str:
    return str(json.loads((source / ADAPTER).read_text("utf-8"))["base_model_name_or_path"])


def _published(source: Path, base: str) -> str:
    """The type of the weights that the training began with, where the run says which these were."""
    start = base
    with suppress(OSError, ValueError, KeyError):
        start = json.loads((source / "settings.json").read_text("utf-8"))["model_name_or_path"]
    config = Path(start) / "config.json"
    if config.is_file():
        told = json.loads(config.read_text("utf-8"))
        return str(told.get("dtype") or told.get("torch_dtype") or "bfloat16")
    return "bfloat16"


# Hot loading


class LoadRefused(TrainingError):
    """A server did not take the adapter."""


def load(made: Export, url: str, *, api_key: str | None = None) -> None:
    """Loads an adapter into the vLLM at `url` (without `/v1`), which must see the same folder. Raises
    `LoadRefused` and `Unreachable`."""
    if made.form is not Form.ADAPTER:
        raise UsageError("only adapters can be loaded into a running server: start one with these weights")
    body = {"lora_name": made.name, "lora_path": str(made.folder.resolve())}
    status, text = _post(f"{url}/v1/load_lora_adapter", body, api_key)
    if status == 404:
        raise LoadRefused(
            f"{url} has no /v1/load_lora_adapter: start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True (in trusted networks only), and give vLLM's own address"
        )
    if status != 200:
        raise LoadRefused(f"{url} did not load {made.name} (status {status}): {text[:300]}")


def unload(name: str, url: str, *, api_key: str | None = None) -> None:
    """Takes an adapter out of the vLLM at `url`. Raises `LoadRefused` and `Unreachable`."""
    status, text = _post(f"{url}/v1/unload_lora_adapter", {"lora_name": name}, api_key)
    if status != 200:
        raise LoadRefused(f"{url} did not unload {name} (status {status}): {text[:300]}")


# The check


@dataclass(frozen=True, slots=True)
class Served:
    """Mean absolute differences of the log-probabilities of the same tokens, in nats: of the served model to
    the exported one, to its base, and between these two. Without a base that can be read: None."""

    tokens: int
    to_export: float
    to_base: float | None
    between: float | None
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether the served model is the exported one: as near to it as rounding allows, and, where
        training has moved the model by more than that, nearer than to the base."""
        near = self.to_export <= self.tolerance
        if self.to_base is None or self.between is None or self.between <= self.tolerance:
            return near
        return near and self.to_export < 0.5 * self.to_base

    @property
    def telling(self) -> bool:
        """Whether base and export differ by more than the tolerance: else the check cannot tell them
        apart."""
        return self.between is None or self.between > self.tolerance


def check(
    made: Export,
    url: str,
    prompts: Sequence[Sequence[int]],
    *,
    base: str | None = None,
    tokens: int = 32,
    tolerance: float = 0.05,
    api_key: str | None = None,
) -> Served:
    """Asks the server at `url` for the log-probabilities of what the exported model says to `prompts` (token
    ids), and compares. The tolerance is for bfloat16 against float32. Raises `Unreachable`."""
    model = _loaded(made)
    texts = [_continued(model, prompt, tokens) for prompt in prompts]
    served = [_prompt_logprobs(url, made.name, ids, api_key) for ids in texts]
    own = [_logprobs(model, ids) for ids in texts]
    start = made.base or base
    before = None
    if start is not None:
        reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
        before = [_logprobs(reference, ids) for ids in texts]
    return Served(
        tokens=sum(map(len, own)),
        to_export=_distance(served, own),
        to_base=None if before is None else _distance(served, before),
        between=None if before is None else _distance(own, before),
        tolerance=tolerance,
    )


def _loaded(made: Export) -> Any:
    if made.form is Form.WEIGHTS:
        return AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(made.folder)).eval()


@torch.inference_mode()
def _continued(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    return [int(id) for id in said[0]]


@torch.inference_mode()
def _logprobs(model: Any, ids: Sequence[int]) -> list[float]:
    """Of each token but the first, given those before it."""
    logits = model(torch.tensor([list(ids)])).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(-1, torch.tensor(list(ids[1:])).unsqueeze(-1))
    return [float(value) for value in chosen.squeeze(-1)]


def _prompt_logprobs(url: str, name: str, ids: Sequence[int], api_key: str | None) -> list[float]:
    body = {"model": name, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    status, text = _post(f"{url}/v1/completions", body, api_key)
    if status != 200:
        raise Unreachable(f"{url} does not tell log-probabilities of {name} (status {status}): {text[:300]}")
    rows = json.loads(text)["choices"][0]["prompt_logprobs"][1:]
    return [float(row[str(id)]["logprob"]) for row, id in zip(rows, ids[1:], strict=True)]


def _distance(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    pairs = [(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / max(1, len(pairs))


def _post(url: str, body: Mapping[str, Any], api_key: str | None) -> tuple[int, str]:
    """Status and text. Raises `Unreachable`."""
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")
    except (urllib.error.URLError, OSError) as error:
        raise Unreachable(f"{url} does not answer: {error}") from None
