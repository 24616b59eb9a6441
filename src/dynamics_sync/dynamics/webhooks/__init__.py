"""What Dataverse's webhooks say: one module for each version of the contract.

A version is added by writing its module and naming it here. What came before and was understood by none waits in the
inbox; `dynamics-sync inbox replay` has it read again.
"""

from dynamics_sync.dynamics.webhooks import remote_execution_context_v1
from dynamics_sync.sync.inbox_ports import Contract

CONTRACTS: tuple[Contract, ...] = (Contract("remote-execution-context/1", remote_execution_context_v1.read),)
"""The first that understands a delivery reads it."""
