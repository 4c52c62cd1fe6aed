"""The evaluation of policies in an environment: `governor eval`."""
