"""Fine-tuning of a policy with the rewards of `governor.rewards`, from logs or from rollouts."""
