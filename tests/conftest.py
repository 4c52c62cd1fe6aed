"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Laws are about values; how long an example takes says only how busy the machine is.
settings.register_profile("governor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("governor")
