"""The decision core of the tool-call governor.

No I/O, no clock, no randomness, no third-party import: requests, tokens and probe answers go in, decisions
come out.
"""
