"""Training: from the governor's entropy signals to a policy that makes fewer useless tool calls."""
