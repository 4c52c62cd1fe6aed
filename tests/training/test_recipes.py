"""The recipes in the repository can be read, and their tools do what they say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from governor_training.dataset import ToolModule, load_module
from governor_training.finetuning.online import run as online

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
CPU = ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]


@pytest.mark.parametrize("name", ["atlas", "search-agent", "code-agent"])
def test_a_recipe_says_what_there_is_to_say(name: str) -> None:
    """A setting that TRL has renamed, or that was mistyped, is found here and not on a rented machine."""
    options, config, model = online.parse(["--config", str(RECIPES / f"{name}.yaml"), *CPU])
    told = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    for key, value in told.items():
        if key not in {"bf16", "use_cpu", "report_to"}:
            found = next(one for one in (options, config, model) if hasattr(one, key))
            assert getattr(found, key) == value, key
    assert config.beta > 0


@pytest.mark.parametrize("name", ["search", "code"])
def test_the_tools_of_a_recipe_only_read(name: str) -> None:
    """Others would be executed for real, thousands of times, while training."""
    tools = ToolModule(load_module(str(RECIPES / f"{name}_tools.py")))
    assert tools.read_only and not tools.effectful
    assert tools.system


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(6 * 7)", "42\n"),
        ("x = 1", "(nothing was printed)"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 'a' * (1 << 31)", "MemoryError"),
    ],
)
def test_code_is_run_and_what_it_printed_is_told(code: str, said: str) -> None:
    """Errors too: a model learns from them."""
    assert said in load_module(str(RECIPES / "code_tools.py")).run_python(code)


class Retriever(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = [{"document": {"contents": f"about {asked['queries'][0]}"}}]
        raw = json.dumps({"result": [found]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def retriever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Retriever) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SEARCH_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield
        server.shutdown()


def test_a_search_tells_passages_and_a_failed_one_says_so(
    retriever: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout must not end because a server was away."""
    search = load_module(str(RECIPES / "search_tools.py")).search
    assert search("Lima") == "about Lima"
    monkeypatch.setenv("SEARCH_URL", "http://127.0.0.1:9")
    assert search("Lima").startswith("error: the search failed")
