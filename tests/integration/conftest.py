"""Nobody is reached whom the system's authorities vouch for: they need not be read at each start of an engine."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def without_the_systems_authorities() -> Iterator[None]:
    """Reading them is most of what it takes to open a session: 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", os.devnull)
        yield
