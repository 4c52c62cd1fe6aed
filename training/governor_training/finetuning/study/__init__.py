"""The comparison of all ways to train on the atlas: the same start, the same budget, judged by the same
held-out questions through a real vLLM."""
