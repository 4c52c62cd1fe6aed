"""The page at /dashboard: what the governor does, as it does it."""
