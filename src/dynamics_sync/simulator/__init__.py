"""A local Dataverse: the Web API, its tokens, its limits, and faults on purpose; and a portal beside it.

Written from Microsoft's documentation. It imports nothing of dynamics-sync, so that the two cannot share a mistake.
"""

from dynamics_sync.simulator.config import SimulatorConfig
from dynamics_sync.simulator.limits import Limits
from dynamics_sync.simulator.portal import PORTAL_SECRET
from dynamics_sync.simulator.server import Simulator, run_simulator
from dynamics_sync.simulator.table_files import load_tables
from dynamics_sync.simulator.tables import AlternateKey, Column, ColumnKind, Table

__all__ = [
    "PORTAL_SECRET",
    "AlternateKey",
    "Column",
    "ColumnKind",
    "Limits",
    "Simulator",
    "SimulatorConfig",
    "Table",
    "load_tables",
    "run_simulator",
]
