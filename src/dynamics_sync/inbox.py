"""How the inbox is wired: what receives webhooks, and what applies them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dynamics_sync.core.mapping import Mapping
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.reading import DataverseReader
from dynamics_sync.dynamics.webhooks import CONTRACTS
from dynamics_sync.postgres.catalogue import TypesOf
from dynamics_sync.postgres.connections import Pool, make_pool
from dynamics_sync.postgres.inbox import PostgresInbox
from dynamics_sync.postgres.inbox_apply import PostgresInboxRows
from dynamics_sync.settings import Settings
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.inbox import Inbox, InboxSettings
from dynamics_sync.sync.inbox_reading import InboxReader
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import GentleReader
from dynamics_sync.web.secrets import WebhookSecrets
from dynamics_sync.web.webhooks import Webhooks

RECEIVING_POOL_SIZE = 2
"""Connections of their own: a busy worker must not keep a delivery waiting."""


def webhook_secrets(settings: Settings) -> WebhookSecrets:
    """The secrets as they are set.

    Raises:
        ConfigurationError: there is none, or one that cannot be used.
    """
    given = (settings.webhook_secret, settings.webhook_previous_secret)
    valid = [secret.get_secret_value() for secret in given if secret is not None]
    if settings.webhook_secret is None:
        valid = []
    return WebhookSecrets(valid, settings.webhook_header, settings.webhook_parameter)


def make_inbox(
    settings: Settings,
    *,
    mapping: Mapping,
    types: TypesOf,
    reader: DataverseReader,
    breaker: DynamicsCircuitBreaker,
    pool: Pool,
    clock: Clock,
) -> Inbox | None:
    """What applies deliveries, not yet running; None where webhooks are off."""
    if not settings.webhooks:
        return None
    gentle = GentleReader(reader, breaker, RetryPolicy(settings.max_retries, settings.base_delay_ms), clock)
    return Inbox(
        store=PostgresInbox(pool, settings.target),
        rows=PostgresInboxRows(pool, settings.target),
        reader=InboxReader(reader, gentle, clock),
        contracts=CONTRACTS,
        mapping=mapping,
        types=types,
        clock=clock,
        settings=InboxSettings(settings.poll_seconds),
    )


@asynccontextmanager
async def open_webhooks(
    settings: Settings, database_url: str, stored: Callable[[], None]
) -> AsyncIterator[Webhooks | None]:
    """What receives webhooks; None where they are off.

    Raises:
        ConfigurationError: the secret is missing or cannot be used.
    """
    if not settings.webhooks:
        yield None
        return
    secrets = webhook_secrets(settings)
    async with make_pool(database_url, RECEIVING_POOL_SIZE) as pool:
        yield Webhooks(secrets, PostgresInbox(pool, settings.target).receive, stored)
