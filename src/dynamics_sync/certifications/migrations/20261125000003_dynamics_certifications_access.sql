-- Who may see and change what (R21). Whom a request comes from is what Supabase says, `auth.uid()`; what they are is in
-- the memberships, never in the token.

-- The functions that policies ask run as service_role, as row-level security would hide the memberships from them. No
-- role but service_role may use their schema, so that nobody calls them by name. The path names pg_temp, last: unnamed
-- it comes first, and a type that a user plants there, such as a domain `uuid`, would run the user's code.
do $do$
declare
  installer constant name := current_user;
begin
  grant usage, create on schema dynamics_certifications to service_role;
  set local role service_role;

  -- The chapters that the user coordinates, and all those of the organisations that they administer.
  create function dynamics_certifications.managed_chapters() returns setof uuid
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    with mine as (
      select m.chapter_id, m.role from public.chapter_memberships m
      where m.user_id = (select auth.uid()) and (m.ends_at is null or m.ends_at > now())
    )
    select mine.chapter_id from mine where mine.role = 'coordinator'
    union
    select c.id
    from mine
    join public.chapters home on home.id = mine.chapter_id
    join public.chapters c on c.organisation_id = home.organisation_id
    where mine.role = 'organisation_admin'
  $$;

  -- The chapters that the user belongs to in any role, and those that they manage.
  create function dynamics_certifications.known_chapters() returns setof uuid
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    select m.chapter_id from public.chapter_memberships m
    where m.user_id = (select auth.uid()) and (m.ends_at is null or m.ends_at > now())
    union
    select dynamics_certifications.managed_chapters()
  $$;

  create function dynamics_certifications.known_organisations() returns setof uuid
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    select c.organisation_id from public.chapters c
    where c.id = any (array(select dynamics_certifications.known_chapters()))
  $$;

  -- What the user is as a peer mentor: one row in each of their chapters.
  create function dynamics_certifications.own_mentors() returns setof uuid
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    select p.id from public.peer_mentors p where p.user_id = (select auth.uid())
  $$;

  -- Policies are evaluated with the user's rights, so the user needs this one.
  revoke execute on function dynamics_certifications.managed_chapters, dynamics_certifications.known_chapters,
    dynamics_certifications.known_organisations, dynamics_certifications.own_mentors from public, anon, authenticated;
  grant execute on function dynamics_certifications.managed_chapters, dynamics_certifications.known_chapters,
    dynamics_certifications.known_organisations, dynamics_certifications.own_mentors to authenticated;
  perform set_config('role', installer, true);
  revoke create on schema dynamics_certifications from service_role;
end
$do$;

-- `any (array(select ...))` is asked once for each statement, and found by index.
create policy members_see_organisation on public.organisations for select to authenticated
using (id = any (array(select dynamics_certifications.known_organisations())));

create policy members_see_chapter on public.chapters for select to authenticated
using (id = any (array(select dynamics_certifications.known_chapters())));

create policy users_see_own_memberships on public.chapter_memberships for select to authenticated
using (user_id = (select auth.uid()));

create policy managers_and_mentors_see_mentor on public.peer_mentors for select to authenticated
using (
  chapter_id = any (array(select dynamics_certifications.managed_chapters()))
  or user_id = (select auth.uid())
);

create policy managers_and_mentors_see_certification on public.certifications for select to authenticated
using (
  chapter_id = any (array(select dynamics_certifications.managed_chapters()))
  or peer_mentor_id = any (array(select dynamics_certifications.own_mentors()))
);
-- A certification is made in the chapter of its mentor, or else who manages two chapters could show one the other's
-- mentors.
create policy managers_add_certification on public.certifications for insert to authenticated
with check (
  chapter_id = any (array(select dynamics_certifications.managed_chapters()))
  and exists (
    select from public.peer_mentors m
    where m.id = certifications.peer_mentor_id and m.chapter_id = certifications.chapter_id
  )
);
create policy managers_change_certification on public.certifications for update to authenticated
using (chapter_id = any (array(select dynamics_certifications.managed_chapters())))
with check (chapter_id = any (array(select dynamics_certifications.managed_chapters())));

grant select on public.organisations, public.chapters, public.chapter_memberships, public.peer_mentors,
  public.certifications to authenticated;
-- No user deletes a certification: they revoke it. None says its id: it might be that of a deleted one, which Dynamics
-- still knows as somebody else's. None moves it, and none writes the history but by appending to it.
grant insert (peer_mentor_id, chapter_id, kind, status, issued_on, expires_on) on public.certifications
  to authenticated;
grant update (kind, status, issued_on, expires_on) on public.certifications to authenticated;
