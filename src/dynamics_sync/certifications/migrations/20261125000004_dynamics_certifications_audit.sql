-- Who reached across chapters and organisations (R23): services, direct sessions and administrators leave a row for each
-- record that they write, and for each that they read through `read_certifications`. A coordinator who works in her own
-- chapters leaves none. Who, what, which and when; no value of a record.

create table dynamics_certifications.access_audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null,
  acting_as text not null,
  kind text not null check (kind in ('read', 'insert', 'update', 'delete', 'truncate')),
  table_name text not null,
  record_id uuid,
  organisation_id uuid,
  reason text check (length(reason) <= 500)
);
comment on column dynamics_certifications.access_audit.actor is
  'The user''s id; of a service or a direct session the role and its application_name.';
comment on column dynamics_certifications.access_audit.acting_as is
  'organisation_admin, or the database''s role.';
comment on column dynamics_certifications.access_audit.record_id is 'Null for a truncation.';
comment on column dynamics_certifications.access_audit.organisation_id is 'No foreign key: it outlives what it names.';
create index access_audit_by_time on dynamics_certifications.access_audit (at desc, id desc);

-- Rows are added by the functions below alone, which run as the owner. Nobody has a policy to change or delete them.
revoke all on dynamics_certifications.access_audit from public, anon, authenticated, service_role;
revoke all on sequence dynamics_certifications.access_audit_id_seq from public, anon, authenticated, service_role;
alter table dynamics_certifications.access_audit enable row level security;
alter table dynamics_certifications.access_audit force row level security;
create policy owner_reads on dynamics_certifications.access_audit for select
using (pg_has_role(
  (select c.relowner from pg_class c where c.oid = 'dynamics_certifications.access_audit'::regclass), 'usage'
));
create policy owner_adds on dynamics_certifications.access_audit for insert
with check (pg_has_role(
  (select c.relowner from pg_class c where c.oid = 'dynamics_certifications.access_audit'::regclass), 'usage'
));

-- What the audit must know whatever row-level security hides: as service_role.
do $do$
declare
  installer constant name := current_user;
begin
  grant create on schema dynamics_certifications to service_role;
  set local role service_role;

  -- Asked at each write: in PL/pgSQL, which keeps its plans.
  create function dynamics_certifications.coordinated_chapters() returns uuid[]
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return array(
      select m.chapter_id from public.chapter_memberships m
      where m.user_id = (select auth.uid()) and m.role = 'coordinator' and (m.ends_at is null or m.ends_at > now())
    );
  end
  $$;

  create function dynamics_certifications.administers(organisation uuid) returns boolean
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return exists (
      select from public.chapter_memberships m join public.chapters c on c.id = m.chapter_id
      where m.user_id = (select auth.uid()) and m.role = 'organisation_admin' and (m.ends_at is null or m.ends_at > now())
        and c.organisation_id = organisation
    );
  end
  $$;

  create function dynamics_certifications.organisation_of(chapter uuid) returns uuid
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return (select c.organisation_id from public.chapters c where c.id = chapter);
  end
  $$;

  create function dynamics_certifications.certifications_of(organisation uuid) returns setof public.certifications
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    select held from public.certifications held
    where held.chapter_id in (select c.id from public.chapters c where c.organisation_id = organisation)
  $$;

  revoke execute on function dynamics_certifications.coordinated_chapters, dynamics_certifications.administers,
    dynamics_certifications.organisation_of, dynamics_certifications.certifications_of
    from public, anon, authenticated;
  execute format(
    'grant execute on function dynamics_certifications.coordinated_chapters, dynamics_certifications.administers,
      dynamics_certifications.organisation_of, dynamics_certifications.certifications_of to %I', installer
  );
  perform set_config('role', installer, true);
  revoke create on schema dynamics_certifications from service_role;
end
$do$;

-- The role that acts, whatever function it came through: PostgREST takes it with `set role`, a direct session has none.
create function dynamics_certifications.acting_role() returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(nullif(current_setting('role'), 'none'), session_user);
end
$$;

-- Who that is. An application's name is what the client says: kept where it is a name, not an address.
create function dynamics_certifications.actor() returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  acting constant text := dynamics_certifications.acting_role();
begin
  if acting = 'authenticated' then
    return coalesce(auth.uid()::text, acting);
  end if;
  return concat_ws('/', acting, substring(current_setting('application_name') from '^[\w ./:-]{1,64}$'));
end
$$;

create type dynamics_certifications.written_record as (record_id uuid, chapter_id uuid, organisation_id uuid);

-- After each statement: one row for each record written by whoever is not confined to its chapter. Of a record that moved
-- both chapters count. Arguments: the columns that name the chapter and the organisation, where the table has them.
create function dynamics_certifications.audit_write() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  acting constant text := dynamics_certifications.acting_role();
  own_chapters uuid[] := '{}';
  written dynamics_certifications.written_record[];
  who text;
begin
  if acting = 'authenticated' then
    own_chapters := dynamics_certifications.coordinated_chapters();
  end if;
  written := array(
    select row(r ->> 'id', r ->> tg_argv[0], r ->> tg_argv[1])::dynamics_certifications.written_record
    from written_rows w cross join lateral to_jsonb(w) as r
    where ((r ->> tg_argv[0])::uuid = any (own_chapters)) is not true
  );
  if tg_op = 'UPDATE' then
    written := written || array(
      select row(r ->> 'id', r ->> tg_argv[0], r ->> tg_argv[1])::dynamics_certifications.written_record
      from old_rows o cross join lateral to_jsonb(o) as r
      where ((r ->> tg_argv[0])::uuid = any (own_chapters)) is not true
    );
  end if;
  if written = '{}' then
    return null;
  end if;
  who := dynamics_certifications.actor();
  with foreign_to_them as (
    select distinct w.record_id, w.chapter_id, w.organisation_id from unnest(written) as w
  ),
  homes as materialized (
    select c.chapter_id, dynamics_certifications.organisation_of(c.chapter_id) as organisation_id
    from (select distinct f.chapter_id from foreign_to_them f where f.organisation_id is null) as c
  ),
  noted as (
    select distinct f.record_id, coalesce(f.organisation_id, h.organisation_id) as organisation_id
    from foreign_to_them f left join homes h on h.chapter_id = f.chapter_id
  )
  insert into dynamics_certifications.access_audit (actor, acting_as, kind, table_name, record_id, organisation_id)
  select who,
    case when acting = 'authenticated' and dynamics_certifications.administers(n.organisation_id)
      then 'organisation_admin' else acting end,
    lower(tg_op), tg_table_schema || '.' || tg_table_name, n.record_id, n.organisation_id
  from noted n;
  return null;
end
$$;

create function dynamics_certifications.audit_truncate() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into dynamics_certifications.access_audit (actor, acting_as, kind, table_name)
  values (
    dynamics_certifications.actor(), dynamics_certifications.acting_role(), 'truncate',
    tg_table_schema || '.' || tg_table_name
  );
  return null;
end
$$;

do $do$
declare
  audited record;
  event record;
begin
  for audited in
    select * from (values
      ('organisations', '', 'id'), ('chapters', 'id', 'organisation_id'), ('chapter_memberships', 'chapter_id', ''),
      ('peer_mentors', 'chapter_id', ''), ('certifications', 'chapter_id', '')
    ) as t (name, chapter, organisation)
  loop
    for event in
      select * from (values
        ('insert', 'new table as written_rows'), ('delete', 'old table as written_rows'),
        ('update', 'old table as old_rows new table as written_rows')
      ) as e (name, transition)
    loop
      execute format(
        'create trigger audit_%s after %1$s on public.%I referencing %s for each statement
         execute function dynamics_certifications.audit_write(%L, %L)',
        event.name, audited.name, event.transition, audited.chapter, audited.organisation
      );
    end loop;
    execute format(
      'create trigger audit_truncate after truncate on public.%I for each statement
       execute function dynamics_certifications.audit_truncate()',
      audited.name
    );
  end loop;
end
$do$;

-- The one door for reading across chapters and organisations: an administrator's and a service's. Triggers see no reads.
create function dynamics_certifications.read_certifications(of_organisation uuid, reason text)
returns setof public.certifications
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  acting text := dynamics_certifications.acting_role();
begin
  if acting = 'authenticated' and dynamics_certifications.administers(of_organisation) then
    acting := 'organisation_admin';
  elsif acting <> 'service_role' then
    raise insufficient_privilege using message = 'Only its administrators and service_role may read the certifications of'
      ' a whole organisation.';
  end if;
  if length(trim(coalesce(reason, ''))) not between 1 and 500 then
    raise invalid_parameter_value using message = 'Say in 1 to 500 characters why the certifications are read.';
  end if;
  return query
    with held as materialized (
      select c.* from dynamics_certifications.certifications_of(of_organisation) as c
    ),
    noted as (
      insert into dynamics_certifications.access_audit
        (actor, acting_as, kind, table_name, record_id, organisation_id, reason)
      select dynamics_certifications.actor(), acting, 'read', 'public.certifications', held.id, of_organisation,
        read_certifications.reason
      from held
    )
    select held.* from held;
end
$$;

-- Callable over REST, as a POST. It runs with its caller's rights: what it may do is decided behind it.
create function public.read_certifications(of_organisation uuid, reason text) returns setof public.certifications
language sql
set search_path = pg_catalog, pg_temp
begin atomic
  select dynamics_certifications.read_certifications(of_organisation, reason);
end;
comment on function public.read_certifications is
  'All certifications of an organisation, for its administrators and service_role. Each record read leaves a row in the '
  'access audit.';

revoke execute on function dynamics_certifications.acting_role, dynamics_certifications.actor,
  dynamics_certifications.audit_write, dynamics_certifications.audit_truncate,
  dynamics_certifications.read_certifications, public.read_certifications
  from public, anon, authenticated, service_role;
grant execute on function dynamics_certifications.read_certifications, public.read_certifications
  to authenticated, service_role;
