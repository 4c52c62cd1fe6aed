"""The OpenAI Agents SDK as it comes, which speaks the Responses API."""

from __future__ import annotations

from tests.e2e.clients.conversation import main
from tests.e2e.clients.openai_agents import play_by_default

if __name__ == "__main__":
    main(play_by_default)
