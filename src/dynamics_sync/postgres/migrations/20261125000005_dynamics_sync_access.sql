-- The emergency switch: a table or view is closed to `anon`, `authenticated` and everybody (PUBLIC) at once, and opened
-- again with exactly the rights that were taken. What stands in a policy is not touched, and neither is service_role.

create table dynamics_sync.frozen (
  relation regclass primary key,
  name text not null,
  frozen_at timestamptz not null default clock_timestamp(),
  frozen_by text not null,
  reason text
);
comment on column dynamics_sync.frozen.name is 'What it was called, for when it is no longer there.';

-- What was taken. Rights that `anon` and `authenticated` had passed on to others are among them.
create table dynamics_sync.frozen_rights (
  relation regclass not null references dynamics_sync.frozen on delete cascade,
  column_name name,
  grantor regrole,
  grantee regrole not null,
  privilege text not null,
  is_grantable boolean not null,
  id bigint generated always as identity primary key,
  unique nulls not distinct (relation, column_name, grantor, grantee, privilege)
);
comment on column dynamics_sync.frozen_rights.column_name is 'Null for the whole table.';
comment on column dynamics_sync.frozen_rights.grantor is 'Null for the owner, whoever that is by then.';
comment on column dynamics_sync.frozen_rights.grantee is '- for PUBLIC.';

-- The rights of others than the owner, as the catalogue has them.
create function dynamics_sync.rights_on(source regclass)
returns table (column_name name, grantor regrole, grantee regrole, privilege text, is_grantable boolean)
language sql
stable
set search_path = ''
as $$
  select found.column_name, nullif(a.grantor, c.relowner)::regrole, a.grantee::regrole, a.privilege_type, a.is_grantable
  from pg_catalog.pg_class c
  cross join lateral (
    select null::name as column_name, c.relacl as acl
    union all
    select col.attname, col.attacl from pg_catalog.pg_attribute col
    where col.attrelid = c.oid and not col.attisdropped
  ) as found
  cross join lateral pg_catalog.aclexplode(found.acl) as a
  where c.oid = source and a.grantee <> c.relowner
$$;

-- Where the API's roles still get at what is in a table or view: through rights of theirs, and through what reads from it
-- with other rights than theirs, or stores the same rows. What a function's text does is not known to the catalogue:
-- those that run with their owner's rights and name the table are told, and those that are known to call them.
create function dynamics_sync.ways_to(source regclass) returns table (way text, kind text, roles text[])
language sql
stable
set search_path = ''
as $$
  with recursive api as (
    select r.oid, r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated')
  ),
  -- Views over views. One that asks for its caller's rights is a way only where another stands between.
  readers (oid, has_own_rights) as (
    select source::oid, false
    union
    select v.oid,
      r.has_own_rights or v.relkind = 'm' or not coalesce((
        select option.option_value::boolean from pg_catalog.pg_options_to_table(v.reloptions) as option
        where option.option_name = 'security_invoker'
      ), false)
    from readers r
    join pg_catalog.pg_depend d
      on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = r.oid
      and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite rule on rule.oid = d.objid
    join pg_catalog.pg_class v on v.oid = rule.ev_class and v.relkind in ('v', 'm')
    where v.oid <> r.oid
  ),
  parts (oid) as (
    select source::oid
    union
    select i.inhrelid from parts join pg_catalog.pg_inherits i on i.inhparent = parts.oid
  ),
  wholes (oid) as (
    select source::oid
    union
    select i.inhparent from wholes join pg_catalog.pg_inherits i on i.inhrelid = wholes.oid
  ),
  functions (oid) as (
    select p.oid from pg_catalog.pg_proc p join pg_catalog.pg_class c on c.oid = source
    where p.prosecdef and (
      p.prosrc ~ ('\m' || regexp_replace(c.relname, '(\W)', '\\\1', 'g') || '\M')
      or exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid
          and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = source
      )
    )
    union
    select d.objid from functions f
    join pg_catalog.pg_depend d
      on d.classid = 'pg_catalog.pg_proc'::regclass and d.refclassid = 'pg_catalog.pg_proc'::regclass
      and d.refobjid = f.oid
  ),
  relations (oid, kind) as (
    select same.oid, 'same' from (select parts.oid from parts union select wholes.oid from wholes) as same
    union
    select readers.oid, 'reader' from readers where readers.has_own_rights
    union
    -- A view over such a function: whoever may read the view need not be able to call it.
    select rule.ev_class, 'reader' from functions f
    join pg_catalog.pg_depend d
      on d.refclassid = 'pg_catalog.pg_proc'::regclass and d.refobjid = f.oid
      and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite rule on rule.oid = d.objid
  )
  select relations.oid::regclass::text,
    case when relations.oid = source then 'rights'
      when relations.kind <> 'reader' then 'partition'
      when c.relkind = 'm' then 'materialized view'
      else 'view' end,
    array_agg(api.rolname::text order by api.rolname)
  from relations
  join pg_catalog.pg_class c on c.oid = relations.oid
  join api on has_table_privilege(api.oid, c.oid, 'select, insert, update, delete, truncate')
    or has_any_column_privilege(api.oid, c.oid, 'select, insert, update')
  group by 1, 2
  union all
  select p.oid::regprocedure::text, 'function', array_agg(api.rolname::text order by api.rolname)
  from functions
  join pg_catalog.pg_proc p on p.oid = functions.oid and p.prorettype <> 'trigger'::regtype
  join api on has_function_privilege(api.oid, p.oid, 'execute') and has_schema_privilege(api.oid, p.pronamespace, 'usage')
  group by 1, 2
  order by 2, 1
$$;

-- Who may close and open a table or view: whoever may act as its owner.
create function dynamics_sync.check_freezable(source regclass) returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  it record;
begin
  select n.nspname, c.relkind, c.relowner::regrole as owner into it
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = source;
  if it.relkind not in ('r', 'p', 'v', 'm', 'f') then
    raise exception '% is neither a table nor a view, and nothing else can be frozen', source;
  elsif it.nspname ~ '^pg_' or it.nspname = 'information_schema' then
    raise exception '% belongs to PostgreSQL itself and cannot be frozen', source;
  elsif not pg_has_role(it.owner, 'usage') then
    raise exception '% belongs to the role %, as which % may not act. Connect as that role', source, it.owner, current_user;
  end if;
end
$$;

-- Close a table or view to the API's roles, and tell the ways that stay open.
-- What has begun ends as it began: a statement or a cursor that was let in before still delivers its rows, and so does
-- the rest of a transaction that has used the table before. Over Supabase's API a transaction is one request, with a
-- time-out of seconds. All else is refused, also on connections that are open, and what was prepared. Freezing waits for
-- none of them, only for a transaction that changes the table's definition or rights.
-- Frozen once more, what was granted since is taken too.
create function dynamics_sync.freeze(source regclass, why text default null, who text default session_user)
returns table (way text, kind text, roles text[])
language plpgsql
set search_path = ''
set lock_timeout = '5s'
as $$
declare
  operator constant name := current_user;
  given record;
begin
  perform dynamics_sync.check_freezable(source);
  insert into dynamics_sync.frozen as known (relation, name, frozen_by, reason) values (source, source::text, who, why)
  on conflict (relation) do update set name = excluded.name;  -- and whoever comes second waits
  insert into dynamics_sync.audit (actor, action, relation, reason) values (who, 'freeze', source::text, why);

  insert into dynamics_sync.frozen_rights as kept
  select source, r.* from dynamics_sync.rights_on(source) as r
  on conflict (relation, column_name, grantor, grantee, privilege)
  do update set is_grantable = kept.is_grantable or excluded.is_grantable;
  for given in
    select distinct coalesce(r.grantor, operator::regrole) as grantor, r.grantee
    from dynamics_sync.rights_on(source) as r
    where r.grantee in (0::regrole, 'anon'::regrole, 'authenticated'::regrole)
  loop
    begin
      perform set_config('role', pg_get_userbyid(given.grantor), true);
      execute format(
        'revoke all on table %s from %s cascade', source,
        case given.grantee when 0::regrole then 'public' else given.grantee::text end
      );
    exception
      when insufficient_privilege then null;  -- not ours to take: it is told below, as a way that stays open
    end;
    perform set_config('role', operator, true);
  end loop;
  -- What is still there was not taken.
  delete from dynamics_sync.frozen_rights kept using dynamics_sync.rights_on(source) as r
  where kept.relation = source and (r.grantee, r.privilege) = (kept.grantee, kept.privilege)
    and r.column_name is not distinct from kept.column_name and r.grantor is not distinct from kept.grantor;
  return query select * from dynamics_sync.ways_to(source);
end
$$;

-- Give back what was taken, and nothing else; tell the rights that could not be given back.
create function dynamics_sync.thaw(source regclass, why text default null, who text default session_user)
returns table (privilege text, column_name name, grantee text)
language plpgsql
set search_path = ''
set lock_timeout = '5s'
as $$
#variable_conflict use_column
declare
  operator constant name := current_user;
  taken record;
  gave boolean := true;
begin
  perform from dynamics_sync.frozen f where f.relation = source for update;
  if not found then
    raise exception '% is not frozen', source;
  end if;
  perform dynamics_sync.check_freezable(source);
  -- Whoever passed a right on must have it back first.
  while gave loop
    gave := false;
    for taken in
      select k.*, k.ctid as place from dynamics_sync.frozen_rights k
      where k.relation = source
        and (k.grantee = 0::regrole or exists (select from pg_catalog.pg_roles r where r.oid = k.grantee))
        and (k.column_name is null or exists (
          select from pg_catalog.pg_attribute a
          where a.attrelid = source and a.attname = k.column_name and not a.attisdropped
        ))
        and (k.grantor is null or exists (
          select from dynamics_sync.rights_on(source) as held
          where held.grantee = k.grantor and held.privilege = k.privilege and held.is_grantable
            and (held.column_name is null or held.column_name = k.column_name)
        ))
    loop
      perform set_config('role', coalesce(pg_get_userbyid(taken.grantor), operator), true);
      execute format(
        'grant %s %s on table %s to %s %s', taken.privilege, '(' || quote_ident(taken.column_name) || ')', source,
        case taken.grantee when 0::regrole then 'public' else taken.grantee::text end,
        case when taken.is_grantable then 'with grant option' end
      );
      perform set_config('role', operator, true);
      delete from dynamics_sync.frozen_rights k where k.ctid = taken.place;
      gave := true;
    end loop;
  end loop;
  insert into dynamics_sync.audit (actor, action, relation, reason) values (who, 'thaw', source::text, why);
  return query
    select k.privilege, k.column_name, k.grantee::text from dynamics_sync.frozen_rights k where k.relation = source;
  delete from dynamics_sync.frozen f where f.relation = source;
end
$$;

revoke all on dynamics_sync.frozen, dynamics_sync.frozen_rights from public, anon, authenticated, service_role;
revoke execute on function dynamics_sync.rights_on, dynamics_sync.ways_to, dynamics_sync.check_freezable,
  dynamics_sync.freeze, dynamics_sync.thaw from public, anon, authenticated, service_role;
