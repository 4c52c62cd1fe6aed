"""Which requests are chat completions, however their path is spelled."""

from __future__ import annotations

from urllib.parse import unquote

CHAT = "/v1/chat/completions"
INVOCATIONS = "/invocations"
"""SageMaker's name for all of a server's APIs: vLLM tells by the body which one is meant."""

MOST_ESCAPES = 3
"""How often a path may have been escaped: once for each server on its way."""


def is_chat(path: str) -> bool:
    """Whether upstream may take a POST to `path` for a chat completion. Servers in front of it may be more
    lenient than it is, so every spelling counts: what upstream does not know it refuses all the same."""
    return path == CHAT or normal_path(path) in (CHAT, INVOCATIONS)


def normal_path(path: str) -> str:
    """The path as the most lenient server would read it: without escapes, empty and relative segments,
    parameters, a slash at its end, or capitals."""
    for _ in range(MOST_ESCAPES):
        path = unquote(path)
    segments: list[str] = []
    for segment in path.replace("\\", "/").split("/"):
        name = segment.partition(";")[0].strip().lower()
        if name == "..":
            del segments[-1:]
        elif name not in ("", "."):
            segments.append(name)
    return "/" + "/".join(segments)
