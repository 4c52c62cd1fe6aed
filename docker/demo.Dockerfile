# vLLM's CPU build, the small model of the demonstration, and agents that ask it: what `make setup` installs.
#   docker build -f docker/demo.Dockerfile -t tool-governor-demo .
# About 4 GB. The lock file is for Python 3.11.
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE}
# vLLM binds its threads by libnuma, and PyTorch wants OpenMP. Versions are those of the base's release.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 libnuma1 g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN scripts/setup
RUN useradd --uid 10001 --create-home governor
USER 10001:10001
ENV PATH=/src/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/home/governor \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    TORCH_COMPILE_DISABLE=1
EXPOSE 8000
# The flags are those with which the governor starts vLLM itself; a test compares them.
CMD ["python", "-m", "vllm.entrypoints.openai.api_server", \
     "--model", "/src/training/governor_training/atlas/model", "--served-model-name", "atlas", \
     "--host", "0.0.0.0", "--port", "8000", \
     "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--max-logprobs", "20", \
     "--dtype", "float32", "--uvicorn-log-level", "warning", \
     "--enable-auto-tool-choice", "--enable-prompt-tokens-details", \
     "--enforce-eager", "--no-enable-chunked-prefill"]
