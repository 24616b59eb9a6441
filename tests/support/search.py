"""How long properties are searched for counter-examples. With DYNAMICS_SYNC_TEST_SEARCH=100, a hundred times longer."""

import os

from hypothesis import HealthCheck, settings

LONGER = int(os.environ.get("DYNAMICS_SYNC_TEST_SEARCH", "1"))


def search(examples: int) -> settings:
    """Settings for a property whose examples take a server or sockets, so that none has a deadline."""
    return settings(max_examples=examples * LONGER, deadline=None, suppress_health_check=[HealthCheck.too_slow])
