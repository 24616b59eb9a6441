-- A role for whatever decides how many workers run, such as KEDA: it can count what waits, and nothing else. Run it as the
-- owner of the outbox, who may make roles; running it again changes nothing. Then give the role a password:
--
--   psql "$DYNAMICS_SYNC_DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/scaler_role.sql
--   psql "$DYNAMICS_SYNC_DATABASE_URL" -c '\password dynamics_sync_scaler'
do $do$
begin
  create role dynamics_sync_scaler login noinherit connection limit 4;
exception
  when duplicate_object then null;
end
$do$;

-- The records that wait for a target, but counted no further than asked for: with millions waiting, a count of them all,
-- every half a minute, would cost more than it tells.
create or replace function dynamics_sync.waiting(of_target text, at_most integer) returns bigint
language sql
stable
security definer
set search_path = ''
as $$
  select least(
    at_most,
    (select count(*) from (select from dynamics_sync.outbox o where o.target = of_target limit at_most) as counted)
      + (select coalesce(sum(c.records), 0) from dynamics_sync.changes c where c.target = of_target)
  )
$$;

revoke execute on function dynamics_sync.waiting from public, anon, authenticated, service_role;
grant usage on schema dynamics_sync to dynamics_sync_scaler;
grant execute on function dynamics_sync.waiting to dynamics_sync_scaler;
