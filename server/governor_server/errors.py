"""Failures that end the program, each told to the operator in one line."""

from __future__ import annotations


class ServerError(Exception):
    """A predictable failure: its text is one line that says what is wrong and how to put it right."""

    exit_code: int = 1


class SettingsError(ServerError):
    """A setting that is unknown, malformed or contradicts another one."""

    exit_code = 2


class EngineError(ServerError):
    """vLLM is not installed, cannot start, or keeps dying."""


class UpstreamUnreachable(ServerError):
    """Nothing answers at the address of the upstream."""


class PortInUse(ServerError):
    """Another program listens on the port."""
