-- Who sees and changes what. For `supabase test db`: copy this file into supabase/tests. It looks only at rows that it
-- makes itself, and takes them back.

begin;
create extension if not exists pgtap with schema extensions;
set local search_path = public, extensions;
select plan(31);

-- Organisation A has the chapters a1 and a2, organisation B the chapter b1. Each chapter has a mentor with a
-- certification. Cora coordinates a1. Siv coordinates a2 and b1. Olga administers A. Eva coordinated a1 until just now.
-- Anna is the mentor of a1.
\set org_a 00000000-0000-4000-8000-00000000000a
\set org_b 00000000-0000-4000-8000-00000000000b
\set a1 00000000-0000-4000-8000-0000000000a1
\set a2 00000000-0000-4000-8000-0000000000a2
\set b1 00000000-0000-4000-8000-0000000000b1
\set of_a1 00000000-0000-4000-8000-00000000a100
\set of_a2 00000000-0000-4000-8000-00000000a200
\set of_b1 00000000-0000-4000-8000-00000000b100
\set cora 00000000-0000-4000-8000-000000000001
\set siv 00000000-0000-4000-8000-000000000002
\set olga 00000000-0000-4000-8000-000000000003
\set eva 00000000-0000-4000-8000-000000000004
\set anna 00000000-0000-4000-8000-000000000005
\set nobody 00000000-0000-4000-8000-000000000006

set local role service_role;
insert into organisations (id, name) values (:'org_a', 'A'), (:'org_b', 'B');
insert into chapters (id, organisation_id, name) values
  (:'a1', :'org_a', 'a1'), (:'a2', :'org_a', 'a2'), (:'b1', :'org_b', 'b1');
insert into chapter_memberships (user_id, chapter_id, role, ends_at) values
  (:'cora', :'a1', 'coordinator', null),
  (:'siv', :'a2', 'coordinator', null),
  (:'siv', :'b1', 'coordinator', null),
  (:'olga', :'a1', 'organisation_admin', null),
  (:'eva', :'a1', 'coordinator', now()),
  (:'anna', :'a1', 'peer_mentor', null);
insert into peer_mentors (id, chapter_id, user_id, display_name) values
  (:'of_a1', :'a1', :'anna', 'of a1'), (:'of_a2', :'a2', null, 'of a2'), (:'of_b1', :'b1', null, 'of b1');
insert into certifications (peer_mentor_id, chapter_id, kind) values
  (:'of_a1', :'a1', 'of a1'), (:'of_a2', :'a2', 'of a2'), (:'of_b1', :'b1', 'of b1');
reset role;

-- A token that also says what it may not say.
create function pg_temp.sign_in(sub text) returns void language sql as $$
  select set_config('request.jwt.claims', jsonb_build_object(
    'sub', sub,
    'role', 'service_role',
    'app_metadata', jsonb_build_object('role', 'organisation_admin'),
    'user_metadata', jsonb_build_object('role', 'organisation_admin')
  )::text, true)
$$;
create function pg_temp.seen() returns text language sql as $$
  select coalesce(string_agg(kind, ', ' order by kind), 'nothing') from public.certifications where kind ~ '^of [ab]\d$'
$$;
create function pg_temp.changed() returns text language plpgsql as $$
declare
  kinds text;
begin
  with changed as (update public.certifications set status = 'active' where kind ~ '^of [ab]\d$' returning kind)
  select coalesce(string_agg(kind, ', ' order by kind), 'nothing') into kinds from changed;
  return kinds;
end
$$;
create function pg_temp.certify(mentor uuid, chapter uuid) returns void language sql as $$
  insert into public.certifications (peer_mentor_id, chapter_id) values (mentor, chapter)
$$;

-- What the tables grant.
select table_privs_are('public', name, 'anon', '{}', 'anon has no right on ' || name)
from unnest(array['organisations', 'chapters', 'chapter_memberships', 'peer_mentors', 'certifications']) name;
select table_privs_are('public', 'dynamics_sync_retry_queue', role, '{}', role || ' has no right on the queue')
from unnest(array['anon', 'authenticated']) role;
select table_privs_are('public', name, 'authenticated', '{SELECT}', 'users may read ' || name)
from unnest(array['organisations', 'chapters', 'chapter_memberships', 'peer_mentors', 'certifications']) name;

-- Who sees and changes which certifications.
set local role authenticated;
select pg_temp.sign_in(:'cora');
select is(pg_temp.seen(), 'of a1', 'a coordinator sees the certifications of her chapter');
select is(pg_temp.changed(), 'of a1', 'and changes them');
select lives_ok(
  format('select pg_temp.certify(%L, %L)', :'of_a1', :'a1'), 'a coordinator certifies a mentor of her chapter'
);
select throws_ok(
  format('select pg_temp.certify(%L, %L)', :'of_b1', :'a1'), '42501', null, 'but no foreign mentor in her own chapter'
);
select throws_ok(
  format('select pg_temp.certify(%L, %L)', :'of_a1', :'b1'), '42501', null, 'nor her own in a foreign chapter'
);
select throws_ok(
  format('update public.certifications set chapter_id = %L where true', :'b1'), '42501', null,
  'nobody moves a certification'
);
select throws_ok(
  'update public.certifications set renewal_history = default where true', '42501', null,
  'nobody writes the history by hand'
);
select throws_ok('delete from public.certifications where true', '42501', null, 'nobody deletes a certification');
select throws_ok('truncate public.certifications', '42501', null, 'nobody deletes them all');

select pg_temp.sign_in(:'siv');
select is(pg_temp.seen(), 'of a2, of b1', 'a coordinator of two chapters sees those of both');
select is(pg_temp.changed(), 'of a2, of b1', 'and changes them');
select throws_ok(
  format('select pg_temp.certify(%L, %L)', :'of_b1', :'a2'), '42501', null, 'but does not mix two organisations'
);

select pg_temp.sign_in(:'olga');
select is(pg_temp.seen(), 'of a1, of a2', 'an administrator sees those of the organisation');
select is(pg_temp.changed(), 'of a1, of a2', 'and changes them');

select pg_temp.sign_in(:'anna');
select is(pg_temp.seen(), 'of a1', 'a mentor sees their own');
select is(pg_temp.changed(), 'nothing', 'and changes none');

select pg_temp.sign_in(:'eva');
select is(pg_temp.seen() || pg_temp.changed(), 'nothingnothing', 'who was a coordinator sees and changes nothing');

select pg_temp.sign_in(:'nobody');
select is(pg_temp.seen() || pg_temp.changed(), 'nothingnothing', 'what a token says of roles counts for nothing');

set local role anon;
select pg_temp.sign_in(:'cora');
select throws_ok('table public.certifications', '42501', null, 'anon sees nothing, whoever they say they are');

reset role;
select * from finish();
rollback;
