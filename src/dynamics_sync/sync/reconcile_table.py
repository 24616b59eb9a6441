"""The comparison of one table with Dynamics, step by step. Each step reads one page, and keeps what it found together
with where to go on: a process that is killed costs one page.

First what Dynamics holds is looked at, all of it or what changed since the last time, and each record that agrees with
its row is noted with the row's fingerprint. Then each row is compared with what was noted. Those that don't agree get a
second look, which alone decides: it asks Dynamics for just these records, then reads their rows, and then leaves out
each record of which a change is on its way, or arrived since the question was asked. So neither side has to be sorted
like the other, and a change that happens meanwhile is no difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import blake2b

from dynamics_sync.core.comparison import GONE, Agreement, Comparison, Finding, Reference, ReferredIds, Row, folded
from dynamics_sync.core.errors import MappingError
from dynamics_sync.core.mapping import TableMapping, UnsendableError
from dynamics_sync.sync.reading import (
    Definition,
    GentleReader,
    Held,
    Page,
    Patience,
    Question,
    Reader,
    RefusedReadingError,
    T,
    View,
)
from dynamics_sync.sync.reconciliation import Phase, Progress, ReconciliationStore, Rows, Seen

PAGE_SIZE = 1000
"""Records of Dynamics that are held in memory at once."""

ROWS_AT_ONCE = 500

FULL_READ_EVERY = timedelta(days=7)
"""How long change tracking is trusted without a look at everything. A delta link lives as long by default (Microsoft:
"Use change tracking to synchronize data with external systems")."""

MOST_REMEMBERED = 10_000
"""Ids of records that lookups refer to, kept in memory."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a comparison works with."""

    reader: Reader
    gentle: GentleReader
    rows: Rows
    store: ReconciliationStore
    patience: Patience
    told: Callable[[Progress], None]

    async def ask(self, question: Question[T]) -> T:
        return await self.gentle.ask(question, self.patience)

    async def definition(self, entity_set: str) -> Definition:
        definition = await self.ask(self.reader.definition(entity_set))
        if definition is None:
            raise MappingError(f"Dynamics has no entity set {entity_set}. Correct the mapping.")
        return definition


@dataclass(slots=True)
class _Look:
    """What a second look came to."""

    seen: list[Seen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    waiting: int = 0


async def open_table(tools: Tools, table: TableMapping) -> "TableRun":
    """Ask Dynamics what it says of the table.

    Raises:
        MappingError: it has no such table, or a lookup of the mapping is not there.
    """
    definition = await tools.definition(table.entity_set)
    wanted = [column.to for column in table.columns.values() if column.lookup is not None]
    lookups: Mapping[str, str] = {}
    if wanted:
        lookups = await tools.ask(tools.reader.lookups(definition.logical_name))
        if unknown := [name for name in wanted if name not in lookups]:
            raise MappingError(
                f"The Dynamics table {definition.logical_name} has no navigation property {unknown[0]} (capitals "
                "count). Correct the mapping."
            )
    return TableRun(tools, Comparison(table, lookups), definition)


class TableRun:
    """One table's way through the phases."""

    def __init__(self, tools: Tools, comparison: Comparison, definition: Definition) -> None:
        table = comparison.table
        self._tools = tools
        self._comparison = comparison
        self._source = table.source
        self._tracks_changes = definition.tracks_changes
        self._view = View(table.entity_set, definition.primary_id, table.alternate_key, comparison.properties)
        meaning = f"{tools.reader.environment} {table.model_dump_json()} {self._view}"
        self._mapping = blake2b(meaning.encode(), digest_size=16).hexdigest()
        self._given_link: str | None = None
        self._references = _References(tools)

    async def run(self, previous: Progress | None) -> Progress:
        """Go on where the last process stopped, or begin; to the end."""
        if previous is None or previous.finished_at is not None or previous.mapping != self._mapping:
            progress = await self._begin(previous)
        else:
            progress = previous
        steps = {Phase.DYNAMICS: self._first_look, Phase.ROWS: self._beside_rows, Phase.GONE: self._without_rows}
        while progress.phase is not Phase.DONE:
            progress = await steps[progress.phase](progress)
            self._tools.told(progress)
        return progress

    async def _begin(self, previous: Progress | None, *, full: bool = False) -> Progress:
        run, now = await self._tools.store.next_run(), await self._tools.store.now()
        if (
            full
            or previous is None
            or previous.finished_at is None
            or previous.delta_link is None
            or previous.mapping != self._mapping
            or now - previous.full_at >= FULL_READ_EVERY
        ):
            return Progress(self._source, run, full_run=run, full_at=now, mapping=self._mapping, begun_at=now)
        return Progress(
            self._source,
            run,
            full_run=previous.full_run,
            full_at=previous.full_at,
            mapping=self._mapping,
            begun_at=now,
            link=previous.delta_link,
            anchor_id=previous.newest_id or previous.anchor_id,
            anchor_etag=previous.newest_etag or previous.anchor_etag,
        )

    async def _first_look(self, progress: Progress) -> Progress:
        try:
            page = await self._tools.ask(self._page(progress))
        except RefusedReadingError as refusal:
            # A link lives for some days, and not longer than its environment: then all is read anew.
            if refusal.is_about_rights or progress.link is None or progress.link == self._given_link:
                raise
            return await self._begin(progress, full=True)
        keyed = [held for held in page.held if held.key is not None]
        rows = await self._tools.rows.read_many(self._source, [str(held.key) for held in keyed])
        ids = await self._references.ids(self._comparison, rows)
        row_keys = {folded(key): key for key in rows}
        seen = []
        for held in keyed:
            key = row_keys.get(folded(str(held.key)), str(held.key))
            agreed = self._comparison.compare(key, rows.get(key), held.attributes, ids)
            seen.append(Seen(held.id, key, agreed.fingerprint if isinstance(agreed, Agreement) else None))
        none_of_ours = [held.id for held in page.held if held.key is None]
        progress = replace(_with_newest(progress, keyed), without_key=progress.without_key + len(none_of_ours))
        if page.next_link is not None:
            self._given_link = page.next_link
            progress = replace(progress, link=page.next_link)
        else:
            progress = replace(progress, phase=Phase.ROWS, link=None, delta_link=page.delta_link)
        await self._tools.store.save(progress, seen=seen, deleted=[*page.deleted, *none_of_ours])
        return progress

    def _page(self, progress: Progress) -> Question[Page]:
        reader, tracked = self._tools.reader, self._tracks_changes and progress.is_full
        if progress.link is None:
            return reader.first_page(self._view, PAGE_SIZE, tracked=tracked)
        return reader.following(self._view, progress.link, PAGE_SIZE, tracked=tracked)

    async def _beside_rows(self, progress: Progress) -> Progress:
        if progress.after is None and await self._went_back(progress):
            return await self._begin(progress, full=True)
        keys = await self._tools.rows.next_keys(self._source, progress.after, ROWS_AT_ONCE)
        if not keys:
            progress = replace(progress, phase=Phase.GONE, after=None)
            await self._tools.store.save(progress)
            return progress
        rows = await self._tools.rows.read_many(self._source, keys)
        known = await self._tools.store.fingerprints(progress, keys)
        look = await self._second_look([key for key in keys if not self._agrees(key, rows.get(key), known)])
        return await self._keep(progress, look, after=keys[-1], compared=len(keys))

    def _agrees(self, key: str, row: Row | UnsendableError | None, known: Mapping[str, str | None]) -> bool:
        fingerprint = self._comparison.fingerprint(key, row)
        return fingerprint is not None and fingerprint == known.get(key)

    async def _without_rows(self, progress: Progress) -> Progress:
        seen = await self._tools.store.seen_after(progress, ROWS_AT_ONCE)
        if not seen:
            progress = replace(progress, phase=Phase.DONE, after=None, finished_at=await self._tools.store.now())
            await self._tools.store.finish(progress)
            return progress
        rows = await self._tools.rows.read_many(self._source, [one.record_key for one in seen])
        without = [one for one in seen if one.record_key not in rows]
        look = await self._second_look([one.record_key for one in without if one.fingerprint != GONE])
        return await self._keep(progress, look, after=seen[-1].id, compared=len(without))

    async def _keep(self, progress: Progress, look: _Look, *, after: str, compared: int) -> Progress:
        progress = replace(
            progress, after=after, compared=progress.compared + compared, waiting=progress.waiting + look.waiting
        )
        await self._tools.store.save(progress, seen=look.seen, findings=look.findings)
        return progress

    async def _went_back(self, progress: Progress) -> bool:
        """Whether Dynamics was restored from a backup that is older than the delta link: then the link tells nothing
        of what the restoration undid. It shows in the record that had changed last before the link was given: unless
        the link tells of a change of it, it must be as it was."""
        if progress.is_full or progress.anchor_id is None:
            return False
        if await self._tools.store.was_seen(progress, progress.anchor_id) is not False:
            return False
        page = await self._tools.ask(self._tools.reader.with_id(self._view, progress.anchor_id))
        return [held.etag for held in page.held] != [progress.anchor_etag]

    async def _second_look(self, keys: Sequence[str]) -> _Look:
        tools, look = self._tools, _Look()
        busy = await tools.store.on_their_way(self._source, keys, None) if keys else set()
        look.waiting += len(busy)
        for batch in tools.reader.batches([key for key in keys if key not in busy]):
            asked_at = await tools.store.now()
            page = await tools.ask(tools.reader.with_keys(self._view, batch))
            held_by_key = {folded(held.key): held for held in page.held if held.key is not None}
            rows = await tools.rows.read_many(self._source, batch)
            ids = await self._references.ids(self._comparison, rows, anew=True)
            moving = await tools.store.on_their_way(self._source, batch, asked_at)
            look.waiting += len(moving)
            for key in batch:
                if key not in moving:
                    self._judge(look, key, rows.get(key), held_by_key.get(folded(key)), ids)
        return look

    def _judge(
        self, look: _Look, key: str, row: Row | UnsendableError | None, held: Held | None, ids: ReferredIds
    ) -> None:
        verdict = self._comparison.compare(key, row, None if held is None else held.attributes, ids)
        if isinstance(verdict, Finding):
            look.findings.append(verdict)
        if held is not None:
            look.seen.append(Seen(held.id, key, verdict.fingerprint if isinstance(verdict, Agreement) else None))


class _References:
    """The ids of records that lookups refer to by alternate key: a record reads back with ids."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._primary_ids: dict[str, str] = {}
        self._ids: dict[Reference, str] = {}

    async def ids(
        self, comparison: Comparison, rows: Mapping[str, Row | UnsendableError], *, anew: bool = False
    ) -> ReferredIds:
        """All that some rows refer to; `anew` without relying on what was asked before."""
        wanted: set[Reference] = set()
        for row in rows.values():
            if not isinstance(row, UnsendableError):
                wanted |= comparison.references(row)
        known = {} if anew else {reference: self._ids[reference] for reference in wanted if reference in self._ids}
        asked: dict[tuple[str, str], list[Reference]] = {}
        for reference in wanted - known.keys():
            asked.setdefault((reference.entity_set, reference.alternate_key), []).append(reference)
        for (entity_set, alternate_key), references in asked.items():
            known |= await self._ask(entity_set, alternate_key, references)
        if len(self._ids) > MOST_REMEMBERED:
            self._ids.clear()
        self._ids |= known
        return known

    async def _ask(self, entity_set: str, alternate_key: str, asked: Sequence[Reference]) -> dict[Reference, str]:
        if entity_set not in self._primary_ids:
            self._primary_ids[entity_set] = (await self._tools.definition(entity_set)).primary_id
        view = View(entity_set, self._primary_ids[entity_set], alternate_key)
        ids: dict[str, str] = {}
        for batch in self._tools.reader.batches([reference.value for reference in asked]):
            page = await self._tools.ask(self._tools.reader.with_keys(view, batch))
            ids |= {folded(held.key): held.id for held in page.held if held.key is not None}
        return {one: ids[folded(one.value)] for one in asked if folded(one.value) in ids}


def _with_newest(progress: Progress, held: Sequence[Held]) -> Progress:
    """Etags are only equal or not. That they are numbers which grow is used to choose a record, and nothing else."""
    newest = max(held, key=lambda one: _number(one.etag), default=None)
    if newest is None or _number(newest.etag) < _number(progress.newest_etag or ""):
        return progress
    return replace(progress, newest_id=newest.id, newest_etag=newest.etag)


def _number(etag: str) -> int:
    digits = "".join(character for character in etag if character in "0123456789")
    return int(digits) if digits else 0
