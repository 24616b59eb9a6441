-- The domain that ships: peer mentors and their certifications. Row-level security is on everywhere and grants nothing
-- but to service_role; what others may see and change is said in the migration about access.

do $$
declare
  table_name text;
begin
  foreach table_name in array
    array['organisations', 'chapters', 'chapter_memberships', 'peer_mentors', 'certifications']
  loop
    if to_regclass(format('public.%I', table_name)) is not null then
      raise exception 'Table public.% exists already, and the certifications that ship would bring their own. Name a '
        'mapping of your own tables in DYNAMICS_SYNC_MAPPING (docs/mapping.md), and run `dynamics-sync migrate` again',
        table_name;
    end if;
  end loop;
end
$$;

-- What the domain needs besides its tables. The schema is not exposed over REST.
create schema dynamics_certifications;
revoke all on schema dynamics_certifications from public;

-- Certifications begin and end with the days of their organisation's time zone.
create table public.organisations (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  time_zone text not null default 'Europe/Oslo'
    check ((timestamptz '2000-01-01 00:00:00+00' at time zone time_zone) is not null),
  expiring_days integer not null default 30 check (expiring_days >= 0)
);
comment on column public.organisations.expiring_days is
  'For so many days before its last one a certification is expiring.';

create table public.chapters (
  id uuid primary key default gen_random_uuid(),
  organisation_id uuid not null references public.organisations (id),
  name text not null
);
create index chapters_of_organisation on public.chapters (organisation_id);

create table public.chapter_memberships (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  chapter_id uuid not null references public.chapters (id),
  role text not null check (role in ('coordinator', 'organisation_admin', 'peer_mentor')),
  ends_at timestamptz,
  unique (user_id, chapter_id, role)
);
comment on column public.chapter_memberships.role is
  'An organisation_admin administers the whole organisation of the chapter.';
create index memberships_of_chapter on public.chapter_memberships (chapter_id);

create table public.peer_mentors (
  id uuid primary key default gen_random_uuid(),
  chapter_id uuid not null references public.chapters (id),
  user_id uuid,
  display_name text not null,
  email text,
  phone text
);
create index peer_mentors_of_chapter on public.peer_mentors (chapter_id);
create index peer_mentors_of_user on public.peer_mentors (user_id);

create table public.certifications (
  id uuid primary key default gen_random_uuid(),
  peer_mentor_id uuid not null references public.peer_mentors (id),
  chapter_id uuid not null references public.chapters (id),
  kind text not null default 'peer_mentor',
  status text not null default 'pending' check (status in ('pending', 'active', 'expiring', 'expired', 'revoked')),
  issued_on date,
  expires_on date,
  renewal_history jsonb not null default '[]',
  updated_at timestamptz not null default clock_timestamp()
);
create index certifications_of_mentor on public.certifications (peer_mentor_id);
create index certifications_of_chapter on public.certifications (chapter_id);
-- Finding the longest histories must not read them all.
create index certifications_with_oversized_history on public.certifications (id)
where case when jsonb_typeof(renewal_history) = 'array' then jsonb_array_length(renewal_history) > 500 else false end;
-- Those that can be valid: what the listing goes through, and what the sweep looks up chapter by chapter.
create index certifications_in_force on public.certifications (chapter_id, status, expires_on)
where status in ('active', 'expiring');

create function dynamics_certifications.stamp() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
revoke execute on function dynamics_certifications.stamp from public, anon, authenticated, service_role;

create trigger stamp before update on public.certifications
for each row when (old.* is distinct from new.*) execute function dynamics_certifications.stamp();

do $$
declare
  table_name text;
begin
  foreach table_name in array
    array['organisations', 'chapters', 'chapter_memberships', 'peer_mentors', 'certifications']
  loop
    execute format('alter table public.%I enable row level security', table_name);
    execute format('alter table public.%I force row level security', table_name);
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', table_name);
    execute format('grant select, insert, update, delete on public.%I to service_role', table_name);
  end loop;
end
$$;

-- What `mapping.toml` sends. Another mapping may need others: `dynamics-sync run` says so.
select dynamics_sync.watch('public.certifications', columns => '{status, issued_on, expires_on}');
