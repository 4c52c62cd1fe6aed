"""Exports: versioned, whole or not there, and told apart from what they are not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from governor_training.atlas.environment import bundled_model
from governor_training.errors import Unreachable, UsageError
from governor_training.finetuning.export import Form, LoadRefused, check, export, load, read, unload
from governor_training.finetuning.export_command import NotTheSame, run


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32)


def moved(size: float = 0.02) -> Any:
    """The bundled model, as if it had been trained."""
    made = model()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(size * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with whole weights, in float32 as it is trained."""
    folder = tmp_path_factory.mktemp("run")
    moved().save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(folder)
    told = {"model_name_or_path": str(bundled_model()), "environment": "atlas", "tools": None, "scorer": "f1"}
    (folder / "settings.json").write_text(json.dumps(told), "utf-8")
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter that does something."""
    folder = tmp_path_factory.mktemp("adapter")
    made = get_peft_model(model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.add_(0.05 * torch.randn_like(weight))
    made.save_pretrained(folder)
    return folder


class Vllm(BaseHTTPRequestHandler):
    """Tells the log-probabilities of a model as vLLM does, and loads adapters."""

    model: ClassVar[Any]
    posted: ClassVar[list[tuple[str, Mapping[str, Any]]]]
    status: ClassVar[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.posted.append((self.path, body))
        answer: Any = {}
        if self.path == "/v1/completions":
            ids = body["prompt"]
            with torch.inference_mode():
                logprobs = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            rows = [{str(id): {"logprob": float(logprobs[place, id])}} for place, id in enumerate(ids[1:])]
            answer = {"choices": [{"prompt_logprobs": [None, *rows]}]}
        raw = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def vllm() -> Iterator[tuple[str, type[Vllm]]]:
    handler = type("Handler", (Vllm,), {"posted": [], "status": 200, "model": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


def test_each_export_has_a_version_of_its_own(trained: Path, tmp_path: Path) -> None:
    """A name that meant one model yesterday and another today cannot be compared or rolled back."""
    names = [export(trained, tmp_path, "atlas").name for _ in range(2)]
    (tmp_path / "atlas-v9").mkdir()
    assert [*names, export(trained, tmp_path, "atlas").name] == ["atlas-v1", "atlas-v2", "atlas-v10"]
    assert export(trained, tmp_path, "other").name == "other-v1"


def test_whole_weights_are_what_vllm_loads(trained: Path, tmp_path: Path) -> None:
    """In the type that the start model was published in, with its tokenizer and template, and without what
    only training needs."""
    made = export(trained, tmp_path, "atlas")
    state, wanted = load_file(made.folder / "model.safetensors"), moved().state_dict()
    assert made.form is Form.WEIGHTS
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert all(torch.equal(value, wanted[name].bfloat16()) for name, value in state.items())
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= {p.name for p in made.folder.iterdir()}
    assert str(made.folder) in made.command()


def test_an_adapter_is_copied_with_its_rank_and_its_base(adapted: Path, tmp_path: Path) -> None:
    """vLLM must be started with room for the rank, and on the right base."""
    made = export(adapted, tmp_path, "atlas")
    assert (made.form, made.rank, made.base) == (Form.ADAPTER, 4, str(bundled_model()))
    assert "--max-lora-rank 8" in made.command() and f"{made.name}={made.folder}" in made.command()
    assert not (made.folder / "model.safetensors").exists()


def test_a_merged_adapter_says_the_same_as_the_adapter(adapted: Path, tmp_path: Path) -> None:
    """An adapter that is merged twice, or not at all, is another model."""
    from peft import PeftModel

    made = export(adapted, tmp_path, "atlas", merge=True, dtype="float32")
    ids = torch.tensor([list(range(20, 60))])
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32)(ids).logits
        apart = PeftModel.from_pretrained(model(), str(adapted))(ids).logits
        base = model()(ids).logits
    assert torch.allclose(merged, apart, atol=1e-3)
    assert not torch.allclose(merged, base, atol=1e-1)


def test_what_vllm_does_not_load_as_an_adapter_is_refused(adapted: Path, tmp_path: Path) -> None:
    """Better here, with the way out, than in the log of a server."""
    broken = tmp_path / "dora"
    broken.mkdir()
    config = json.loads((adapted / "adapter_config.json").read_text("utf-8"))
    (broken / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}), "utf-8")
    with pytest.raises(UsageError, match="use_dora: use --merge"):
        export(broken, tmp_path / "out", "atlas")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b"])
def test_a_name_must_be_one(trained: Path, tmp_path: Path, name: str) -> None:
    """It becomes a folder and a model's name."""
    with pytest.raises(UsageError, match="no name"):
        export(trained, tmp_path, name)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    """A typing error in a path must not end in a traceback of a library."""
    with pytest.raises(UsageError, match="neither a model nor an adapter"):
        export(tmp_path, tmp_path / "out", "atlas")


def test_an_export_whose_weights_changed_is_not_taken(trained: Path, tmp_path: Path) -> None:
    """The digest is what says that a name still means what it meant."""
    made = export(trained, tmp_path, "atlas")
    assert read(made.folder) == made
    with (made.folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match="not those that were exported"):
        read(made.folder)


def test_the_served_model_is_told_from_its_base(
    trained: Path, tmp_path: Path, vllm: tuple[str, type[Vllm]]
) -> None:
    """A server that was not restarted serves the old model under the new name; that is the mistake."""
    url, server = vllm
    made = export(trained, tmp_path, "atlas")
    prompts = [list(range(20, 40)), list(range(50, 90))]
    server.model = moved().bfloat16().float().eval()
    found = check(made, url, prompts, base=str(bundled_model()), tokens=8)
    assert found.same and found.telling
    assert found.to_base is not None and found.to_export < 0.01 < found.to_base
    server.model = model().eval()
    found = check(made, url, prompts, base=str(bundled_model()), tokens=8)
    assert not found.same
    assert server.posted[0][1]["model"] == made.name


def test_without_a_base_the_distance_alone_decides(
    adapted: Path, trained: Path, tmp_path: Path, vllm: tuple[str, type[Vllm]]
) -> None:
    """Whole weights whose start is not known."""
    url, server = vllm
    made = export(trained, tmp_path, "atlas")
    server.model = moved(0.03).eval()
    assert not check(made, url, [list(range(20, 60))], tokens=4).same


def test_an_adapter_is_loaded_into_a_running_server(
    adapted: Path, tmp_path: Path, vllm: tuple[str, type[Vllm]]
) -> None:
    """Under its versioned name, by an absolute path: the server has another working directory."""
    url, server = vllm
    made = export(adapted, tmp_path, "atlas")
    load(made, url)
    unload("atlas-v0", url)
    assert server.posted == [
        ("/v1/load_lora_adapter", {"lora_name": "atlas-v1", "lora_path": str(made.folder.resolve())}),
        ("/v1/unload_lora_adapter", {"lora_name": "atlas-v0"}),
    ]
    server.status = 404
    with pytest.raises(LoadRefused, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        load(made, url)
    with pytest.raises(Unreachable, match="does not answer"):
        load(made, "http://127.0.0.1:9")


def test_the_command_exports_checks_and_says_no(
    trained: Path, tmp_path: Path, vllm: tuple[str, type[Vllm]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the folder of a run, with the tasks that it was trained on; then again from the export."""
    url, server = vllm
    server.model = moved().eval()
    assert run([str(trained), "--out", str(tmp_path), "--name", "atlas", "--check", f"{url}/v1"]) == 0
    assert "serves atlas-v1" in capsys.readouterr().out
    server.model = model().eval()
    with pytest.raises(NotTheSame, match="atlas-v1 is not what"):
        run([str(tmp_path / "atlas-v1"), "--check", url])
