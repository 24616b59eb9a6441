"""The catalogue of a database in words, to compare: who may do what, and what there is."""

from typing import LiteralString

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]
Rows = set[tuple[object, ...]]

OURS = ("public", "dynamics_sync", "dynamics_certifications")

RIGHTS: LiteralString = """
with acls (kind, what, acl) as (
  select 'schema', n.nspname::text, coalesce(n.nspacl, acldefault('n', n.nspowner))
  from pg_namespace n where n.nspname = any(%(schemas)s)
  union all
  select 'relation', format('%%I.%%I', n.nspname, c.relname),
    coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = any(%(schemas)s) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all
  select 'column', format('%%I.%%I.%%I', n.nspname, c.relname, a.attname), a.attacl
  from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = any(%(schemas)s) and not a.attisdropped
  union all
  select 'function', p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any(%(schemas)s)
  union all
  select 'type', t.oid::regtype::text, coalesce(t.typacl, acldefault('T', t.typowner))
  from pg_type t join pg_namespace n on n.oid = t.typnamespace where n.nspname = any(%(schemas)s)
)
select acls.kind, acls.what, a.grantor::regrole::text, a.grantee::regrole::text, a.privilege_type, a.is_grantable
from acls cross join aclexplode(acls.acl) as a
"""

PROTECTION: LiteralString = """
select 'table', format('%%I.%%I', n.nspname, c.relname), c.relowner::regrole::text, c.relkind::text,
  c.relrowsecurity, c.relforcerowsecurity, c.reloptions::text
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%(schemas)s) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select 'policy', format('%%I on %%I.%%I', p.polname, n.nspname, c.relname), array(
    select case role when 0 then 'public' else role::regrole::text end from unnest(p.polroles) as role order by 1
  )::text, p.polcmd::text, p.polpermissive, false,
  concat_ws(' check ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%(schemas)s)
union all
select 'function', p.oid::regprocedure::text, p.proowner::regrole::text, p.provolatile::text, p.prosecdef, false,
  p.proconfig::text
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any(%(schemas)s)
"""

DEFINITIONS: LiteralString = """
select 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any(%(schemas)s)
  and p.prokind in ('f', 'p')
union all
select 'column', format('%%I.%%I.%%I', n.nspname, c.relname, a.attname), concat_ws(' ',
  a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
  pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
)
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
where n.nspname = any(%(schemas)s) and a.attnum > 0 and c.relkind in ('r', 'p', 'v', 'm', 'f')
union all
select 'constraint', format('%%s on %%s', k.conname, k.conrelid::regclass), pg_get_constraintdef(k.oid)
from pg_constraint k join pg_namespace n on n.oid = k.connamespace where n.nspname = any(%(schemas)s)
union all
select 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%(schemas)s)
union all
select 'trigger', format('%%s on %%s', t.tgname, t.tgrelid::regclass), pg_get_triggerdef(t.oid) || t.tgenabled::text
from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%(schemas)s) and not t.tgisinternal
union all
select 'view', c.oid::regclass::text, pg_get_viewdef(c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = any(%(schemas)s)
  and c.relkind in ('v', 'm')
"""

ROLES: LiteralString = """
select 'role', to_jsonb(r)::text from pg_roles r where r.rolname !~ '^pg_'
union all
select 'membership',
  format('%%s in %%s by %%s %%s', m.member::regrole, m.roleid::regrole, m.grantor::regrole, m.admin_option)
from pg_auth_members m
union all
select 'default privilege',
  format('%%s %%s %%s %%s', d.defaclrole::regrole, d.defaclnamespace, d.defaclobjtype, d.defaclacl)
from pg_default_acl d
"""


def rights(connection: Connection, *schemas: str) -> Rows:
    """Each right of each role, in these schemas."""
    return _rows(connection, RIGHTS, schemas)


def protection(connection: Connection, *schemas: str) -> Rows:
    """Owners, row-level security, policies, and with whose rights functions and views run."""
    return _rows(connection, PROTECTION, schemas)


def definitions(connection: Connection, *schemas: str) -> Rows:
    """Columns, constraints, indexes, triggers, views and functions."""
    return _rows(connection, DEFINITIONS, schemas)


def roles(connection: Connection) -> Rows:
    """All roles, their settings, who is a member of which, and what new objects are granted."""
    return _rows(connection, ROLES, ())


def _rows(connection: Connection, query: LiteralString, schemas: tuple[str, ...]) -> Rows:
    found = connection.execute(query, {"schemas": [*schemas]}).fetchall()
    assert len(found) == len(set(found))
    return set(found)
