"""Makes the tiny models of the demonstration environments, from scratch, in minutes: the Qwen3 architecture,
a tokenizer and chat template as vLLM loads them, and one readable training loop."""
