"""Changes that people make in Dynamics' own pages: the same as over the Web API, by somebody else."""

import json
from dataclasses import dataclass
from uuid import uuid4

from dynamics_sync.simulator import webapi
from dynamics_sync.simulator.addresses import Locator
from dynamics_sync.simulator.messages import Request
from dynamics_sync.simulator.organization import user_id
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.values import is_guid
from dynamics_sync.simulator.webhooks.context import Origin
from dynamics_sync.simulator.webhooks.pipeline import Webhooks


@dataclass(frozen=True, slots=True)
class Edit:
    """What somebody does: POST creates, PATCH changes what is there, DELETE deletes.

    `key` is an id, `column='value'`, or the value of the table's first alternate key of one column. `user` is a name or
    a user's id.
    """

    method: str
    entity_set: str
    key: str
    attributes: JsonObject
    user: str


class People:
    """Everybody who works in the environment itself."""

    def __init__(self, store: Store, webhooks: Webhooks) -> None:
        self._store = store
        self._webhooks = webhooks

    async def edit(self, edit: Edit) -> None:
        """Do what somebody wants.

        Raises:
            DataverseError: as the Web API would answer.
        """
        table = self._store.table(edit.entity_set)
        path = f"{edit.entity_set}({self._key(table, edit.key)})" if edit.key else edit.entity_set
        content = json.dumps(edit.attributes).encode()
        request = Request(edit.method, path, {}, {"if-match": "*"}, content, "", user_id=user_id(edit.user))
        origin = Origin(request.user_id, "", str(uuid4()), str(uuid4()), None)
        await self._webhooks.commit(origin, lambda: webapi.answer(self._store, request))

    def _key(self, table: Table, key: str) -> str:
        """A record's id, `column='value'`, or the value alone of an alternate key, which may look like an id."""
        if "=" in key or (is_guid(key) and self._store.find(table, Locator(key.lower()))):
            return key
        names = [alternate.columns[0] for alternate in table.alternate_keys if len(alternate.columns) == 1]
        quoted = key.replace("'", "''")
        return f"{names[0]}='{quoted}'" if names else key
