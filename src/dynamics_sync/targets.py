"""What records can be sent to: Dynamics, and a portal where the settings name one.

Each target has its own circuit, outbox rows, queue entries and worker. They share the process, the connections to the
database and the code, and none waits for another.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.mapping import SourceTables
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.checks import check_dynamics_url
from dynamics_sync.dynamics.tokens import Credentials
from dynamics_sync.portal.contract import Contract, read_contract
from dynamics_sync.portal.gateway import PortalGateway, portal_address
from dynamics_sync.portal.signing import Signer
from dynamics_sync.postgres.catalogue import TypesOf, check_mapping
from dynamics_sync.postgres.connections import brief_connection
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.postgres.records import PostgresRecords
from dynamics_sync.settings import Settings
from dynamics_sync.stores import TargetStores, lease_times
from dynamics_sync.sync.clock import StoppableClock, SystemClock
from dynamics_sync.sync.lease import LeasedGateway
from dynamics_sync.sync.one_by_one import as_bulk
from dynamics_sync.sync.pacer import PacedClock, PacedGateway, Pacer
from dynamics_sync.sync.ports import BulkGateway, Gateway
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from dynamics_sync.transport.client import open_client


def make_worker(
    settings: Settings,
    stores: TargetStores,
    gateway: Gateway | BulkGateway,
    records: PostgresRecords,
    clock: StoppableClock,
    pacer: Pacer,
) -> Worker:
    """Wire what sends to one target."""
    times = lease_times(settings)
    outbox = PostgresOutbox(stores.pool, stores.name, times.lease_seconds)
    leased = LeasedGateway(PacedGateway(as_bulk(gateway), pacer, clock), outbox, clock, times)
    service = HLFDynamicsSyncService(
        breaker=stores.breaker,
        policy=RetryPolicy(settings.max_retries, settings.base_delay_ms),
        gateway=leased,
        queue=stores.queue,
        clock=PacedClock(clock, pacer),
    )
    return Worker(
        service=service,
        breaker=stores.breaker,
        outbox=outbox,
        leases=leased,
        pacer=pacer,
        read_ahead=records.read_ahead,
        clock=clock,
        settings=WorkerSettings(
            settings.concurrency, settings.poll_seconds, shutdown_seconds=times.request_seconds + 15.0
        ),
    )


def make_pacer(settings: Settings, stores: TargetStores, clock: StoppableClock) -> Pacer:
    """This worker's part of a target's pace."""
    return Pacer(stores.pace, clock, settings.concurrency, str(uuid4()))


async def check_capture(tables: SourceTables, target: str, database_url: str) -> TypesOf:
    """Make sure that all that is mapped for a target is captured for it; give the types of the columns.

    Raises:
        DatabaseError, MappingError: what is wrong, and what to do.
    """
    async with brief_connection(database_url) as connection:
        return await check_mapping(connection, tables, target)


def dynamics_of(settings: Settings) -> tuple[str, Credentials]:
    """Where Dynamics is, and as whom it is asked.

    Raises:
        ConfigurationError: a setting is missing or cannot be used; the message says which.
    """
    wanted = {
        "DYNAMICS_SYNC_DYNAMICS_URL": settings.dynamics_url,
        "DYNAMICS_SYNC_TENANT_ID": settings.tenant_id,
        "DYNAMICS_SYNC_CLIENT_ID": settings.client_id,
        "DYNAMICS_SYNC_CLIENT_SECRET": settings.client_secret,
    }
    missing = [name for name, value in wanted.items() if not value]
    if missing or settings.dynamics_url is None or settings.client_secret is None:
        raise ConfigurationError(f"{', '.join(missing)} must be set too: Dynamics is reached with all four.")
    credentials = Credentials(
        tenant_id=settings.tenant_id or "",
        client_id=settings.client_id or "",
        client_secret=settings.client_secret.get_secret_value(),
        authority_url=settings.authority_url,
        ca_file=str(settings.ca_file) if settings.ca_file else None,
    )
    return check_dynamics_url(settings.dynamics_url), credentials


@dataclass(frozen=True, slots=True)
class Portal:
    """Where the portal is, and what was agreed with it."""

    address: str
    signer: Signer
    contract: Contract


def portal_of(settings: Settings) -> Portal | None:
    """The portal of the settings; None where they name none.

    Raises:
        ConfigurationError: a setting is missing or cannot be used; the message says which.
    """
    wanted = {
        "DYNAMICS_SYNC_PORTAL_URL": settings.portal_url,
        "DYNAMICS_SYNC_PORTAL_SECRET": settings.portal_secret,
    }
    missing = [name for name, value in wanted.items() if not value]
    if len(missing) == len(wanted) and settings.portal_contract is None:
        return None
    if settings.portal_url is None or settings.portal_secret is None:
        raise ConfigurationError(f"{' and '.join(missing)} must be set too: a portal is reached with both.")
    contract = read_contract(settings.portal_contract)
    address = portal_address(settings.portal_url, contract.path)
    return Portal(address, Signer(settings.portal_secret.get_secret_value()), contract)


@asynccontextmanager
async def open_portal(
    settings: Settings, portal: Portal, stores: TargetStores, database_url: str
) -> AsyncIterator[Worker]:
    """A worker that sends to the portal, over connections of its own.

    Raises:
        ConfigurationError, DatabaseError: what is wrong, and what to do.
    """
    types = await check_capture(portal.contract, stores.name, database_url)
    clock = SystemClock()
    records = PostgresRecords(stores.pool, portal.contract, types, clock)
    ca_file = str(settings.ca_file) if settings.ca_file else None
    opened = open_client(portal.address, ca_file, settings.request_timeout_seconds, settings.concurrency)
    async with opened as client:
        gateway = PortalGateway(
            address=portal.address,
            client=client,
            signer=portal.signer,
            records=records,
            contract=portal.contract,
            clock=clock,
        )
        stopping = StoppableClock(clock)
        pacer = make_pacer(settings, stores, stopping)
        yield make_worker(settings, stores, gateway, records, stopping, pacer)
