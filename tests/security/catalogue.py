"""What there is to attack, as the database's catalogue has it."""

from dataclasses import dataclass

from security.policy import ALL, NOTHING, Rights, Verb
from security.world import Connection

SCHEMAS = ["public", "dynamics_sync", "dynamics_certifications", "auth", "supabase_migrations"]
COLUMN_RIGHTS = (Verb.SELECT, Verb.INSERT, Verb.UPDATE)


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, a view of whatever kind or a sequence."""

    name: str
    kind: str
    columns: tuple[str, ...]
    """Without those that are always generated."""
    key: tuple[str, ...]
    """The primary key's."""

    @property
    def verbs(self) -> tuple[Verb, ...]:
        if self.kind == "S":
            return (Verb.USE,)
        return (Verb.SELECT, Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.TRUNCATE)


@dataclass(frozen=True, slots=True)
class Function:
    """A function or procedure."""

    name: str
    """With the types of its arguments."""
    callee: str
    """Without them, after `call` or `select * from`."""
    types: tuple[str, ...]
    """Of the arguments that have no default."""

    @property
    def takes_ids(self) -> bool:
        return "uuid" in self.types

    def call(self, value: str = "") -> str:
        """A statement that calls it: with this id wherever one is taken and something plausible beside it, or with
        nulls."""
        given = _PLAUSIBLE | {"uuid": f"'{value}'"} if value else {}
        arguments = (f"{given.get(kind, 'null')}::{kind}" for kind in self.types)
        return f"{self.callee}({', '.join(arguments)})"


_PLAUSIBLE = {"text": "'renewed'", "date": "current_date", "integer": "1", "boolean": "true"}

_RELATIONS = """
select c.oid::regclass::text, c.relkind::text,
  array(
    select quote_ident(a.attname) from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attidentity <> 'a' and a.attgenerated = ''
    order by a.attnum
  ),
  array(
    select quote_ident(a.attname) from pg_index i
    join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey::int2[])
    where i.indrelid = c.oid and i.indisprimary
  )
from pg_class c
where c.relnamespace = any (%s::regnamespace[]) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
order by c.relnamespace <> 'public'::regnamespace, 1
"""

_FUNCTIONS = """
select p.oid::regprocedure::text,
  case p.prokind when 'p' then 'call ' else 'select * from ' end || p.oid::regproc::text,
  array(
    select format_type(type, null) from unnest(p.proargtypes::oid[]) with ordinality as argument (type, n)
    where p.prokind = 'p' or n <= cardinality(p.proargtypes::oid[]) - p.pronargdefaults order by n
  )
from pg_proc p
where p.pronamespace = any (%s::regnamespace[])
order by p.pronamespace <> 'public'::regnamespace, 1
"""

_TABLE_RIGHTS = """
select r.right, has_table_privilege(%(role)s, c.oid, r.right), array(
  select quote_ident(a.attname) from pg_attribute a
  where r.right in ('select', 'insert', 'update') and a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    and has_column_privilege(%(role)s, c.oid, a.attnum, r.right)
)
from pg_class c, unnest(array['select', 'insert', 'update', 'delete', 'truncate']) r ("right")
where c.oid = %(relation)s::regclass
"""


def relations(owner: Connection) -> list[Relation]:
    """All, those in public first. The owner's search path must be empty, so that names have their schema."""
    schemas = _existing(owner)
    found = owner.execute(_RELATIONS, [schemas]).fetchall()
    return [Relation(name, kind, tuple(columns), tuple(key)) for name, kind, columns, key in found]


def functions(owner: Connection) -> list[Function]:
    """All, those in public first."""
    found = owner.execute(_FUNCTIONS, [_existing(owner)]).fetchall()
    return [Function(name, callee, tuple(types)) for name, callee, types in found]


def rights_on(owner: Connection, role: str, relation: Relation) -> Rights:
    """By verb, the columns on which the role holds a right, whether or not it may use the schema."""
    if relation.kind == "S":
        query = "select has_sequence_privilege(%s, %s, 'usage, select, update')"
        (held,) = owner.execute(query, [role, relation.name]).fetchone() or (False,)
        return {Verb.USE: ALL if held else NOTHING}
    found = owner.execute(_TABLE_RIGHTS, {"role": role, "relation": relation.name})
    return {Verb(right): ALL if whole else frozenset(columns) for right, whole, columns in found}


def holds_execute(owner: Connection, role: str, function: Function) -> bool:
    """Whether the role holds execute on it, whether or not it may use the schema."""
    query = "select has_function_privilege(%s, %s, 'execute')"
    return owner.execute(query, [role, function.name]).fetchone() == (True,)


def _existing(owner: Connection) -> list[str]:
    query = "select nspname from pg_namespace where nspname = any (%s)"
    return [name for (name,) in owner.execute(query, [SCHEMAS])]
