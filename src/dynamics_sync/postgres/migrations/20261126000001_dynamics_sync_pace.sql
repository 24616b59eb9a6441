-- How fast requests go to a target: one pace, kept by all of its workers together.

-- One row for each target. Changed by compare-and-set on revision.
create table dynamics_sync.pace (
  target text primary key,
  concurrency integer not null check (concurrency > 0),
  threshold integer not null check (threshold > 0),
  changed_at timestamptz,
  reduced_at timestamptz,
  revision bigint not null
);

-- Who sends at present. A worker that stops, or dies, is no longer counted a few seconds later.
create table dynamics_sync.senders (
  target text not null,
  worker text not null,
  until timestamptz not null,
  primary key (target, worker)
) with (fillfactor = 50);

-- Note that a worker sends, at most once in half the time that it is then counted for; give how many do, its place among
-- them, and whether nobody did before.
create function dynamics_sync.note_sender(of_target text, of_worker text, present_seconds double precision)
returns table (senders bigint, rank bigint, is_first boolean)
language plpgsql
set search_path = ''
as $$
declare
  known timestamptz;
begin
  select s.until into known from dynamics_sync.senders s where s.target = of_target and s.worker = of_worker;
  if known is null or known < clock_timestamp() + make_interval(secs => present_seconds / 2) then
    delete from dynamics_sync.senders s
    where s.target = of_target and s.until < clock_timestamp() and s.worker <> of_worker;
    insert into dynamics_sync.senders as noted (target, worker, until)
    values (of_target, of_worker, clock_timestamp() + make_interval(secs => present_seconds))
    on conflict (target, worker) do update set until = excluded.until;
  end if;
  return query
    select count(*), count(*) filter (where s.worker < of_worker),
      count(*) = 1 and (known is null or known < clock_timestamp())
    from dynamics_sync.senders s
    where s.target = of_target and (s.until >= clock_timestamp() or s.worker = of_worker);
end
$$;

revoke all on dynamics_sync.pace, dynamics_sync.senders from public, anon, authenticated, service_role;
revoke execute on function dynamics_sync.note_sender(text, text, double precision)
from public, anon, authenticated, service_role;
