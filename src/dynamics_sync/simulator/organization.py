"""Who is who in the simulated environment: its own ids, and those of its users."""

from functools import lru_cache
from uuid import NAMESPACE_URL, uuid5

from dynamics_sync.simulator.values import is_guid

ORGANIZATION_ID = "3f6b2c1e-0000-4000-8000-000000000003"
ORGANIZATION_NAME = f"unq{ORGANIZATION_ID.replace('-', '')[:29]}"
"""The unique name, which is not the one of the environment's address."""
BUSINESS_UNIT_ID = "3f6b2c1e-0000-4000-8000-000000000001"


@lru_cache(maxsize=1000)
def user_id(name: str) -> str:
    """The id of the user behind a client id or a person's name, always the same. An id stands for itself."""
    return name.lower() if is_guid(name) else str(uuid5(NAMESPACE_URL, f"user/{name}"))
