-- The domain that ships: peer mentors and their certifications. Row-level security is on everywhere and grants nothing
-- yet but to service_role.

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

create table public.organisations (
  id uuid primary key default gen_random_uuid(),
  name text not null
);

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
  unique (user_id, chapter_id, role)
);
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

select dynamics_sync.watch('public.certifications');
