"""Fine-tuning a policy while it works in an environment: group-relative policy optimisation (GRPO) on TRL,
with the entropy rewards of `governor.rewards` and the ones that they are compared with."""
