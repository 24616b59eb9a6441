"""Who attacks."""

import json
from dataclasses import dataclass

from security.world import CHAPTERS, chapter_id, claims, organisation_id

ANON = "anon"
AUTHENTICATED = "authenticated"
SERVICE = "service_role"

FORGED = {
    "role": "service_role",
    "user_role": "organisation_admin",
    "app_metadata": {"role": "organisation_admin", "organisation_id": str(organisation_id("A"))},
    "user_metadata": {"role": "coordinator", "chapters": [str(chapter_id(name)) for name in CHAPTERS]},
}
"""What somebody writes into a token who wants to be more than they are."""


@dataclass(frozen=True, slots=True)
class Actor:
    """One who comes with a role and claims."""

    name: str
    who: str
    role: str
    claims: str | None = None


ACTORS = (
    Actor("anon", "without a token", ANON),
    Actor("anon+", "anon, with a coordinator's id and a forged role in the claims", ANON, claims("Cora", **FORGED)),
    Actor("none", "authenticated, without claims", AUTHENTICATED),
    Actor("no-id", "authenticated, `sub` is no UUID", AUTHENTICATED, json.dumps({"sub": "' or true --"})),
    Actor("nobody", "a user who is nothing here", AUTHENTICATED, claims("nobody")),
    Actor("forged", "nobody, with every role forged in the claims", AUTHENTICATED, claims("nobody", **FORGED)),
    Actor("Cora", "coordinator of A1", AUTHENTICATED, claims("Cora")),
    Actor("Cora+", "coordinator of A1, with every role forged in the claims", AUTHENTICATED, claims("Cora", **FORGED)),
    Actor("Siv", "coordinator of A2 and, in another organisation, of B1", AUTHENTICATED, claims("Siv")),
    Actor("Olga", "administrator of organisation A", AUTHENTICATED, claims("Olga")),
    Actor("Eva", "was coordinator of A1 and administrator of B until a second ago", AUTHENTICATED, claims("Eva")),
    Actor("Anna", "peer mentor in A1", AUTHENTICATED, claims("Anna")),
    Actor("Bea", "peer mentor in B1", AUTHENTICATED, claims("Bea")),
    Actor("service", "service_role", SERVICE),
)
