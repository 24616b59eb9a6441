-- The machinery: what is to be sent, what was sent, what could not be sent, and how Dynamics is.
-- The schema is not exposed over REST. Only the retry queue is in public, for service_role alone.

create schema dynamics_sync;
revoke all on schema dynamics_sync from public;

-- Versions are unique for ever, not per record: a row that is settled and captured again never gets an old version.
create sequence dynamics_sync.change_version;

-- Ids of the outbox, also of records that are sent without ever having a row there.
create sequence dynamics_sync.outbox_ids;

-- What has just been changed, as the users' own transactions note it: appended, so that no transaction waits for another or
-- for a worker, and at the least cost. A row is for records of which one statement changed the same columns, at
-- most a thousand. A claim gathers them into the outbox, or takes many of them straight from here: then a row stands for
-- as many rows of the outbox, which are leased. No record is both in such a row and in the outbox.
create table dynamics_sync.changes (
  id bigint generated always as identity,
  target text not null,
  source_table text not null,
  operation_type text not null,
  changed_columns text[] not null default '{}',
  records integer not null,
  record_keys text[] not null,
  is_doubt boolean not null default false,
  noted_at timestamptz not null default clock_timestamp(),
  is_taken boolean not null default false,
  record_ids bigint[],
  version bigint,
  lease_owner text,
  lease_until timestamptz,
  primary key (is_taken, target, id)
);
comment on column dynamics_sync.changes.is_doubt is 'They are sent whatever Dynamics is believed to hold.';
comment on column dynamics_sync.changes.record_ids is 'Of records that are taken: what the ids of their outbox rows would be.';
-- Not compressed: whoever changes them waits meanwhile.
alter table dynamics_sync.changes
  alter column record_keys set storage external, alter column record_ids set storage external;

-- The dirty set: one row for each record that Dynamics does not have in its newest state.
create table dynamics_sync.outbox (
  id bigint not null unique default nextval('dynamics_sync.outbox_ids'),
  target text not null,
  source_table text not null,
  record_key text not null,
  version bigint not null default nextval('dynamics_sync.change_version'),
  operation_type text not null check (operation_type in ('upsert', 'delete')),
  changed_columns text[] not null default '{}',
  enqueued_at timestamptz not null default clock_timestamp(),
  attempts integer not null default 0,
  lease_owner text,
  lease_until timestamptz,
  primary key (target, source_table, record_key)
) with (fillfactor = 40);

-- Claim order: least tried first, then oldest. Leases are not indexed, and each page has room for all its rows once
-- more: so claiming a whole page makes no index entry.
create index outbox_claim_order on dynamics_sync.outbox (target, attempts, enqueued_at);

-- What Dynamics was last known to hold. `payload_hash` is a digest of what was written there last; null where something
-- else may have been written since, by a request of ours of which not all is known, or by somebody there. Its index begins
-- with what differs: it is looked up twice for each record that is sent, among all that ever were.
create table dynamics_sync.record_state (
  target text not null,
  source_table text not null,
  record_key text not null,
  applied_version bigint not null,
  etag text,
  payload_hash bytea,
  applied_at timestamptz not null default clock_timestamp(),
  primary key (record_key, source_table, target)
) with (fillfactor = 50);

-- Requests that were never answered. Dynamics may still be at work on them, and let one take effect after a newer state
-- was written: once that cannot happen any more, the record is sent once more.
create table dynamics_sync.unanswered (
  target text not null,
  source_table text not null,
  record_key text not null,
  until timestamptz not null,
  primary key (target, source_table, record_key)
);
create index unanswered_by_time on dynamics_sync.unanswered (target, until);

-- One circuit for each target, shared by all workers. Changed by compare-and-set on revision.
create table dynamics_sync.circuit (
  target text primary key,
  state text not null default 'closed' check (state in ('closed', 'open', 'half_open')),
  failure_count integer not null default 0,
  failing_since timestamptz,
  opened_at timestamptz,
  last_error_code text,
  probe_owner text,
  probe_until timestamptz,
  paused_until timestamptz,
  generation bigint not null default 0,
  revision bigint not null default 0
);

-- Which environment of Dynamics a target stands for: its address, as noted when it was first served.
create table dynamics_sync.environments (
  target text primary key,
  address text not null,
  noted_at timestamptz not null default clock_timestamp()
);

-- Who attends to a target: until when a worker looks at its outbox again without being woken, and until when somebody
-- listens. NOTIFY has the commits of a whole database wait for one another, so nobody is woken who need not be.
create table dynamics_sync.attention (
  target text primary key,
  awake_until timestamptz not null default '-infinity',
  listening_until timestamptz not null default '-infinity'
) with (fillfactor = 50);

-- Outages. One begins when a circuit opens and ends when it closes; its number is short enough to be typed.
create table dynamics_sync.incidents (
  id bigint generated always as identity primary key,
  target text not null,
  failing_since timestamptz not null,
  opened_at timestamptz not null default clock_timestamp(),
  closed_at timestamptz,
  error_code text not null,
  failure_count integer not null
);
create unique index incidents_one_at_a_time on dynamics_sync.incidents (target) where closed_at is null;

-- Failed requests, for an entry's time line.
create table dynamics_sync.attempts (
  id bigint generated always as identity primary key,
  target text not null,
  source_table text not null,
  record_key text not null,
  version bigint not null,
  attempt_number integer not null,
  at timestamptz not null,
  error_code text not null,
  delay_ms integer not null
);
create index attempts_of_record on dynamics_sync.attempts (target, source_table, record_key, at);

-- What operators did: with an entry of the queue, with the circuit of a target, or with a table or view.
create table dynamics_sync.audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null,
  action text not null,
  target text,
  relation text,
  entry_id uuid,
  incident_id bigint references dynamics_sync.incidents,
  reason text,
  check (num_nonnulls(target, relation) = 1)
);
create index audit_of_entry on dynamics_sync.audit (entry_id);
create index audit_of_incident on dynamics_sync.audit (incident_id);

revoke all on all tables in schema dynamics_sync from public, anon, authenticated, service_role;
revoke all on all sequences in schema dynamics_sync from public, anon, authenticated, service_role;

-- What was given up and waits for a person. Metadata only: no value of a record, no token, no header.
create table public.dynamics_sync_retry_queue (
  id uuid primary key default gen_random_uuid(),
  target text not null default 'dynamics',
  source_table text not null,
  record_key text not null,
  operation_type text not null,
  payload_json jsonb not null,
  failure_reason text not null,
  error_code text not null,
  attempt_count integer not null check (attempt_count >= 0),
  incident_id bigint references dynamics_sync.incidents,
  status text not null check (
    status in (
      'pending_manual_replay', 'requires_investigation', 'replaying', 'replayed', 'superseded', 'discarded'
    )
  ),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
);
create unique index dynamics_sync_retry_queue_one_open_entry
  on public.dynamics_sync_retry_queue (target, source_table, record_key)
  where status in ('pending_manual_replay', 'requires_investigation', 'replaying');
create index dynamics_sync_retry_queue_by_status on public.dynamics_sync_retry_queue (status, created_at, id);
create index dynamics_sync_retry_queue_by_incident on public.dynamics_sync_retry_queue (incident_id, created_at, id);

alter table public.dynamics_sync_retry_queue enable row level security;
alter table public.dynamics_sync_retry_queue force row level security;
create policy service_role_only on public.dynamics_sync_retry_queue to service_role using (true) with check (true);
revoke all on public.dynamics_sync_retry_queue from public, anon, authenticated, service_role;
grant select, insert, update, delete on public.dynamics_sync_retry_queue to service_role;

-- The names that are in one or the other. A function, so that only those who need it pay for its plan.
create function dynamics_sync.either(some_names text[], other_names text[]) returns text[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select array(select unnest(some_names) union select unnest(other_names) order by 1)
$$;

-- The number of an advisory lock.
create function dynamics_sync.lock_of(what text, of_target text) returns bigint
language plpgsql
immutable
set search_path = ''
as $$
begin
  return hashtextextended('dynamics_sync.' || what || ' ' || of_target, 0);
end
$$;

-- Taken records get rows of the outbox after all, leased as they are. Places are those of rows that the caller has locked.
create function dynamics_sync.unfold(places tid[]) returns void
language sql
set search_path = ''
set jit = off
as $$
  with folded as (
    delete from dynamics_sync.changes c where c.ctid = any(places)
    returning c.*
  )
  insert into dynamics_sync.outbox (
    id, target, source_table, record_key, version, operation_type, changed_columns, enqueued_at, lease_owner, lease_until
  )
  select
    record.id, f.target, f.source_table, record.key, f.version, f.operation_type, f.changed_columns, f.noted_at,
    f.lease_owner, f.lease_until
  from folded f cross join lateral unnest(f.record_ids, f.record_keys) as record (id, key)
$$;

-- Those of which these are some. (Here and below, `is true` has what was given hashed once: joined, each would be compared
-- with each.)
create function dynamics_sync.unfold_claimed(ids bigint[], claims text[]) returns void
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
begin
  if exists (select from dynamics_sync.changes c where c.is_taken and c.lease_owner = any(claims)) then
    perform dynamics_sync.unfold(array(
      select c.ctid from dynamics_sync.changes c
      where c.is_taken and c.lease_owner = any(claims)
        and exists (select from unnest(c.record_ids) as own (id) where (own.id in (select unnest(ids))) is true)
      order by c.id for update
    ));
  end if;
end
$$;

-- Whoever is about to put records into the outbox: none of them is taken now, nor before the end of this transaction.
create function dynamics_sync.reserve_places(of_target text, of_table text, keys text[]) returns void
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
begin
  perform pg_catalog.pg_advisory_xact_lock_shared(dynamics_sync.lock_of('places', of_target));
  if exists (select from dynamics_sync.changes c where c.is_taken and c.target = of_target) then
    perform dynamics_sync.unfold(array(
      select c.ctid from dynamics_sync.changes c
      where c.is_taken and (c.target, c.source_table) = (of_target, of_table)
        and exists (select from unnest(c.record_keys) as own (key) where (own.key in (select unnest(keys))) is true)
      order by c.id for update
    ));
  end if;
end
$$;

-- Mark one record dirty: Dynamics lacks its newest state.
create function dynamics_sync.mark_dirty(
  of_target text, of_table text, of_key text, of_type text default 'upsert', of_columns text[] default '{}'
) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select dynamics_sync.reserve_places(of_target, of_table, array[of_key]);
  insert into dynamics_sync.outbox as waiting (target, source_table, record_key, operation_type, changed_columns)
  values (of_target, of_table, of_key, of_type, of_columns)
  on conflict (target, source_table, record_key) do update set
    version = nextval('dynamics_sync.change_version'),
    operation_type = excluded.operation_type,
    changed_columns = case
      when waiting.changed_columns @> excluded.changed_columns then waiting.changed_columns
      else dynamics_sync.either(waiting.changed_columns, excluded.changed_columns)
    end
$$;

-- The text of what wakes the workers of a target, which is given as an expression, if they listen, and would not look by
-- themselves in a moment. While its circuit is open they may do nothing, and its closing wakes them.
create function dynamics_sync.waking(of_target text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $function$
  select format(
    $sql$
    perform from dynamics_sync.attention a
    where a.target = %s and a.awake_until <= clock_timestamp() and clock_timestamp() < a.listening_until;
    if found then
      perform pg_notify('dynamics_sync', %1$s)
      where not exists (select from dynamics_sync.circuit c where c.target = %1$s and c.state = 'open');
    end if;
    $sql$, of_target)
$function$;

do $do$
begin
  execute format(
    'create function dynamics_sync.wake(of_target text) returns void language plpgsql
     set search_path = pg_catalog, pg_temp as %L', format('begin%s end', dynamics_sync.waking('of_target'))
  );
end
$do$;

-- A claim tells whether its worker looks again by itself: so it does after one that found something. It says that it
-- sleeps before it looks for the last time: what was changed before is found then, and what is changed later wakes it.
-- A second is also for how long a worker that died is waited for. What another claim notes need not be noted twice.
create function dynamics_sync.note_claim(of_target text, found_some boolean) returns void
language plpgsql
set search_path = ''
set enable_seqscan = off
as $$
begin
  update dynamics_sync.attention a
  set awake_until = clock_timestamp() + case when found_some then interval '1 second' else interval '0' end
  where a.target = (
    select known.target from dynamics_sync.attention known
    where known.target = of_target
      and case when found_some
        then clock_timestamp() > known.awake_until - interval '0.5 s' and clock_timestamp() < known.listening_until
        else clock_timestamp() < known.awake_until
      end
    for update skip locked
  );
end
$$;

-- It is no longer certain what Dynamics holds of a record: whatever is to be sent of it is sent.
create function dynamics_sync.forget_payload(of_target text, of_table text, of_key text) returns void
language sql
set search_path = ''
set enable_seqscan = off
as $$
  update dynamics_sync.record_state s set payload_hash = null
  where (s.target, s.source_table, s.record_key) = (of_target, of_table, of_key) and s.payload_hash is not null
$$;

-- Mark one record dirty so that it is sent, whatever Dynamics is believed to hold.
create function dynamics_sync.send_again(of_target text, of_table text, of_key text, of_type text default 'upsert')
returns void
language sql
set search_path = ''
as $$
  select dynamics_sync.mark_dirty(of_target, of_table, of_key, of_type);
  select dynamics_sync.forget_payload(of_target, of_table, of_key)
$$;

-- What Dynamics is known to hold of these records. One at a time: a join may go through all that was ever sent.
create function dynamics_sync.known_payloads(of_target text, of_table text, keys text[])
returns table (record_key text, payload_hash bytea)
language plpgsql
set search_path = ''
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  return query
  select given.record_key, known.payload_hash
  from unnest(keys) as given (record_key)
  cross join lateral (
    select s.payload_hash from dynamics_sync.record_state s
    where (s.target, s.source_table, s.record_key) = (of_target, of_table, given.record_key)
      and s.payload_hash is not null
    limit 1
  ) as known;
end
$$;

-- A request was never answered: it may take effect for so long.
create function dynamics_sync.note_unanswered(
  of_target text, of_table text, of_key text, late_seconds double precision
) returns void
language sql
set search_path = ''
as $$
  select dynamics_sync.forget_payload(of_target, of_table, of_key);
  insert into dynamics_sync.unanswered as known (target, source_table, record_key, until)
  values (of_target, of_table, of_key, clock_timestamp() + make_interval(secs => late_seconds))
  on conflict (target, source_table, record_key) do update set until = excluded.until
$$;

-- The same for some of these rows: one at a time, whatever the planner believes of the table, and in one order
-- everywhere, so that nobody waits in a circle.
create function dynamics_sync.note_unanswered_of(ids bigint[], late_seconds double precision) returns void
language plpgsql
set search_path = ''
as $$
declare
  row_id bigint;
begin
  for row_id in
    select given.id from unnest(ids) as given (id) order by given.id
  loop
    perform dynamics_sync.note_unanswered(o.target, o.source_table, o.record_key, late_seconds)
    from dynamics_sync.outbox o where o.id = row_id;
  end loop;
end
$$;

-- Bring these changes, which the caller has locked, into the outbox: a record that changed many times is there once. In
-- the order of the keys, so that nobody waits in a circle.
create function dynamics_sync.gather_these(of_target text, places tid[]) returns bigint
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
  gathered bigint;
begin
  perform dynamics_sync.reserve_places(of_target, of_table.name, of_table.keys)
  from (
    select c.source_table as name, array_agg(key) as keys
    from dynamics_sync.changes c cross join lateral unnest(c.record_keys) as key
    where c.ctid = any(places)
    group by c.source_table
  ) as of_table;
  with taken as (
    delete from dynamics_sync.changes c where c.ctid = any(places)
    returning c.*
  ),
  each as (
    select t.id, t.source_table, record_key from taken t cross join lateral unnest(t.record_keys) as record_key
  ),
  spans as (
    select e.source_table, e.record_key, min(e.id) as first_id, max(e.id) as last_id
    from each e
    group by e.source_table, e.record_key
  ),
  -- Few change more than once meanwhile: only theirs are brought together.
  several as (
    select e.source_table, e.record_key, array_agg(distinct name order by name) as changed_columns
    from spans s
    join each e on (e.source_table, e.record_key) = (s.source_table, s.record_key)
    join taken t on t.id = e.id
    cross join lateral unnest(t.changed_columns) as name
    where s.first_id < s.last_id
    group by e.source_table, e.record_key
  ),
  of_record as (
    select s.source_table, s.record_key, first.noted_at, last.operation_type,
      case when s.first_id = s.last_id then last.changed_columns
        else coalesce(
          (select m.changed_columns from several m where (m.source_table, m.record_key) = (s.source_table, s.record_key)),
          '{}'
        )
      end as changed_columns
    from spans s
    join taken first on first.id = s.first_id
    join taken last on last.id = s.last_id
  ),
  noted as (
    insert into dynamics_sync.outbox as waiting
      (target, source_table, record_key, operation_type, changed_columns, enqueued_at)
    select of_target, r.source_table, r.record_key, r.operation_type, r.changed_columns, r.noted_at
    from of_record r
    order by r.source_table, r.record_key
    on conflict (target, source_table, record_key) do update set
      version = nextval('dynamics_sync.change_version'),
      operation_type = excluded.operation_type,
      changed_columns = case
        when waiting.changed_columns @> excluded.changed_columns then waiting.changed_columns
        else dynamics_sync.either(waiting.changed_columns, excluded.changed_columns)
      end
  ),
  doubted as (
    select dynamics_sync.forget_payload(of_target, e.source_table, e.record_key)
    from each e join taken t on t.id = e.id and t.is_doubt
  )
  select count(*) into gathered from of_record where (select count(*) from doubted) >= 0;
  return gathered;
end
$$;

-- Lock the oldest changes, of about so many records; gives their places. What another transaction has locked is left out.
create function dynamics_sync.oldest_changes(of_target text, of_records integer) returns tid[]
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
begin
  return array(
    select first.place
    from (
      select due.place, sum(due.records) over (order by due.id) - due.records as before
      from (
        select c.ctid as place, c.id, c.records from dynamics_sync.changes c
        where not c.is_taken and c.target = of_target order by c.id limit of_records for update skip locked
      ) as due
    ) as first
    where first.before < of_records
  );
end
$$;

-- Gather changes of about so many records, the oldest first; gives of how many. One at a time, so that they stay in
-- order. Where another transaction keeps a record of the outbox, they are left for later.
create function dynamics_sync.gather(of_target text, of_records integer) returns bigint
language plpgsql
set search_path = ''
set lock_timeout = '100ms'
set jit = off
set enable_seqscan = off
as $$
begin
  if not exists (select from dynamics_sync.changes c where not c.is_taken and c.target = of_target) then
    return 0;
  end if;
  perform pg_catalog.pg_advisory_xact_lock(dynamics_sync.lock_of('gather', of_target));
  return dynamics_sync.gather_these(of_target, dynamics_sync.oldest_changes(of_target, of_records));
exception when lock_not_available then
  return 0;
end
$$;

-- Gather all changes of one record that are committed, and wait for whoever is doing so or has it taken.
create function dynamics_sync.gather_record(of_target text, of_table text, of_key text) returns void
language sql
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
  select dynamics_sync.reserve_places(of_target, of_table, array[of_key]);
  select dynamics_sync.gather_these(of_target, array(
    select c.ctid from dynamics_sync.changes c
    where not c.is_taken and (c.target, c.source_table) = (of_target, of_table) and of_key = any (c.record_keys)
    order by c.id for update
  ));
$$;

-- Take records straight from where they were noted, so many at most (and a thousand) and at least, the oldest first;
-- nothing if some of them changed more than once, are in the outbox (which is not looked into if it is long) or taken
-- already, or if somebody may be putting them into the outbox.
create function dynamics_sync.take(
  of_target text, at_most integer, at_least integer, claim_id text, lease_seconds double precision
)
returns table (
  ids bigint[], source_table text, record_keys text[], version bigint, operation_type text, changed_columns text[],
  attempts integer
)
language plpgsql
set search_path = ''
set lock_timeout = '100ms'
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  places tid[];
begin
  perform pg_catalog.pg_advisory_xact_lock(dynamics_sync.lock_of('gather', of_target));
  if not pg_catalog.pg_try_advisory_xact_lock(dynamics_sync.lock_of('places', of_target)) then
    return;
  end if;

  at_most := least(at_most, 1000);
  places := dynamics_sync.oldest_changes(of_target, at_most);
  if not exists (
    select from dynamics_sync.changes c where c.ctid = any(places)
    having sum(c.records) >= at_least and not bool_or(c.is_doubt)
  ) or exists (
    with each as materialized (
      select c.source_table, key from dynamics_sync.changes c cross join lateral unnest(c.record_keys) as key
      where c.ctid = any(places)
    ),
    in_use as materialized (
      (select o.source_table, o.record_key as key from dynamics_sync.outbox o where o.target = of_target limit 2000)
      union all
      select c.source_table, key from dynamics_sync.changes c cross join lateral unnest(c.record_keys) as key
      where c.is_taken and c.target = of_target
    )
    select from each group by each.source_table, each.key having count(*) > 1
    union all
    select from each join in_use using (source_table, key)
    union all
    (select from dynamics_sync.outbox o where o.target = of_target offset 1999 limit 1)
  ) then
    return;
  end if;

  return query
    with noted as (
      delete from dynamics_sync.changes c where c.ctid = any(places)
      returning c.*
    ),
    each as (
      select n.*, at_most - (sum(n.records) over (order by n.id) - n.records) as wanted from noted n
    ),
    left_over as (
      insert into dynamics_sync.changes (
        id, target, source_table, operation_type, changed_columns, records, record_keys, noted_at
      )
      overriding system value
      select e.id, of_target, e.source_table, e.operation_type, e.changed_columns, e.records - e.wanted,
        e.record_keys[e.wanted + 1:], e.noted_at
      from each e where e.records > e.wanted
    ),
    taken as (
      insert into dynamics_sync.changes (
        target, source_table, operation_type, changed_columns, records, record_keys, noted_at, is_taken, record_ids,
        version, lease_owner, lease_until
      )
      select of_target, e.source_table, e.operation_type, e.changed_columns, count(*), array_agg(key),
        min(e.noted_at), true, array_agg(nextval('dynamics_sync.outbox_ids')), nextval('dynamics_sync.change_version'),
        claim_id, clock_timestamp() + make_interval(secs => lease_seconds)
      from each e cross join lateral unnest(e.record_keys[:e.wanted]) as key
      group by e.source_table, e.operation_type, e.changed_columns
      order by min(e.id)
      returning *
    )
    select t.record_ids, t.source_table, t.record_keys, t.version, t.operation_type, t.changed_columns, 0
    from taken t order by t.id;
exception when lock_not_available then
  return;
end
$$;

-- Take up to at_most records that nobody holds: least tried first, then oldest. Gives them together where they are a row of
-- `changes`. A row that a transaction has locked is skipped: a long one may delay its own records, never the others'.
-- Changes of so many records are gathered first. Where at least as many as taken_from have just been changed, it is not
-- done: they are taken as they are, once those that were never tried are on their way. What has waited for ten seconds is
-- gathered: a record that goes on changing then waits once.
-- A queue's statistics always lie: it was empty when it was analysed. So the planner is kept to the index's order here,
-- and below no table is joined: lateral subqueries that lock or have a limit, and `any(array(...))`, are looked up by key
-- whatever it believes. A join may go through all that waits, for each row.
-- A claim is on the disk before a request leaves under it: what a server that crashes forgets was not sent. Otherwise a
-- state that nobody remembers may be in Dynamics, and record_state be wrong.
-- Where a lease ran out, its worker may have died with a request under way.
-- Plans with a forbidden step look dear enough to be compiled, at each call: hence no JIT.
create function dynamics_sync.claim(
  of_target text, at_most integer, claim_id text, lease_seconds double precision, late_seconds double precision,
  gathered_at_once integer default 0, taken_from integer default null
)
returns table (
  ids bigint[], source_table text, record_keys text[], version bigint, operation_type text, changed_columns text[],
  attempts integer
)
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
  claimed_rows bigint;
  is_flood boolean;
  is_turn boolean;
begin
  if exists (
    select from dynamics_sync.changes c where c.is_taken and c.target = of_target and c.lease_until < clock_timestamp()
  ) then
    perform dynamics_sync.unfold(array(
      select c.ctid from dynamics_sync.changes c
      where c.is_taken and c.target = of_target and c.lease_until < clock_timestamp()
      order by c.id for update skip locked
    ));
  end if;
  select sum(first.records) >= taken_from and min(first.noted_at) > clock_timestamp() - interval '10 s' into is_flood
  from (
    select c.records, c.noted_at from dynamics_sync.changes c
    where not c.is_taken and c.target = of_target order by c.id limit greatest(taken_from, 1)
  ) as first;
  if is_flood then
    is_turn := not exists (
      select from dynamics_sync.outbox o
      where o.target = of_target and o.attempts = 0 and (o.lease_until is null or o.lease_until < clock_timestamp())
    );
    if is_turn then
      return query select * from dynamics_sync.take(of_target, at_most, taken_from, claim_id, lease_seconds);
      if found then
        perform dynamics_sync.note_claim(of_target, true);
        return;
      end if;
    end if;
  end if;
  if gathered_at_once > 0 and (is_flood is not true or is_turn) then
    perform dynamics_sync.gather(of_target, gathered_at_once);
  end if;
  return query
    with due as (
      select o.id, o.lease_owner is not null as was_left, o.source_table, o.record_key
      from dynamics_sync.outbox o
      where o.target = of_target and (o.lease_until is null or o.lease_until < clock_timestamp())
      order by o.attempts, o.enqueued_at
      limit at_most
      for update skip locked
    ),
    noted as (
      select dynamics_sync.note_unanswered(of_target, due.source_table, due.record_key, late_seconds)
      from due where due.was_left
      order by due.id
    ),
    claimed as (
      update dynamics_sync.outbox o
      set lease_owner = claim_id, lease_until = clock_timestamp() + make_interval(secs => lease_seconds)
      where o.id = any(array(select due.id from due)) and (select count(*) from noted) >= 0
      returning o.id, o.source_table, o.record_key, o.version, o.operation_type, o.changed_columns, o.attempts,
        o.enqueued_at
    )
    select array[c.id], c.source_table, array[c.record_key], c.version, c.operation_type, c.changed_columns, c.attempts
    from claimed c order by c.attempts, c.enqueued_at;
  get diagnostics claimed_rows = row_count;
  if claimed_rows = 0 then
    perform pg_catalog.set_config('synchronous_commit', 'off', true);
  end if;
  perform dynamics_sync.note_claim(of_target, claimed_rows > 0);
end
$$;

-- Those of them that are claimed as given.
create function dynamics_sync.still_claimed(ids bigint[], claims text[]) returns setof bigint
language sql
set search_path = ''
set enable_seqscan = off
as $$
  select held.id
  from unnest(ids, claims) as given (id, claim_id)
  cross join lateral (
    select o.id from dynamics_sync.outbox o where o.id = given.id and o.lease_owner = given.claim_id limit 1
  ) as held
$$;

-- Begin the leases of claimed rows anew; give those that are still ours. What a transaction has locked is not.
create function dynamics_sync.renew(ids bigint[], claims text[], lease_seconds double precision)
returns table (id bigint, claim_id text)
language sql
set search_path = ''
set enable_seqscan = off
as $$
  select dynamics_sync.unfold_claimed(ids, claims);
  update dynamics_sync.outbox o set lease_until = clock_timestamp() + make_interval(secs => lease_seconds)
  where o.id = any(array(
    select held.id
    from unnest(ids, claims) as given (id, claim_id)
    cross join lateral (
      select o.id from dynamics_sync.outbox o where o.id = given.id and o.lease_owner = given.claim_id
      for update skip locked
    ) as held
  ))
  returning o.id, o.lease_owner
$$;

-- Give taken records back: they are unchanged, or they would have rows of the outbox. What else was taken by the same claim
-- is not locked: whoever has unfolded some of it may come for this.
create function dynamics_sync.give_back_taken(ids bigint[], claims text[])
returns table (id bigint, source_table text, record_key text)
language plpgsql
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  taken record;
  done record;
begin
  for taken in
    select c.* from dynamics_sync.changes c
    where c.is_taken and c.lease_owner = any(claims)
      and exists (select from unnest(c.record_ids) as own (id) where (own.id in (select unnest(ids))) is true)
    order by c.id for update
  loop
    select array_agg(own.id) filter (where own.is_gone) as ids, array_agg(own.key) filter (where own.is_gone) as keys,
      array_agg(own.id) filter (where not own.is_gone) as other_ids,
      array_agg(own.key) filter (where not own.is_gone) as other_keys
    into done
    from (
      select record.id, record.key, given.id is not null as is_gone
      from unnest(taken.record_ids, taken.record_keys) as record (id, key)
      left join unnest(ids, claims) as given (id, claim_id)
        on given.id = record.id and given.claim_id = taken.lease_owner
    ) as own;
    continue when done.ids is null;
    if done.other_ids is null then
      delete from dynamics_sync.changes c where c.is_taken and (c.target, c.id) = (taken.target, taken.id);
    else
      update dynamics_sync.changes c
      set record_ids = done.other_ids, record_keys = done.other_keys, records = cardinality(done.other_ids)
      where c.is_taken and (c.target, c.id) = (taken.target, taken.id);
    end if;
    perform dynamics_sync.note_changed_here(taken.target, taken.source_table, key, taken.changed_columns)
    from unnest(done.keys) as key
    cross join lateral (
      select from dynamics_sync.inbox_records known
      where (known.target, known.source_table, known.record_key) = (taken.target, taken.source_table, key)
        and known.taken <> '{}'
      limit 1
    ) as is_known
    where (select exists (select from dynamics_sync.inbox_records known where known.target = taken.target));
    return query select gone.id, taken.source_table, gone.key from unnest(done.ids, done.keys) as gone (id, key);
  end loop;
end
$$;

-- Give claimed rows back: what is unchanged since the claim goes ('gone'), what changed waits for its next turn
-- ('changed'), what a user's transaction has locked is still ours ('locked'). Left out are rows whose lease passed to
-- somebody else. What goes was a change made here: of a record of which webhooks told, this is noted.
create function dynamics_sync.give_back(ids bigint[], versions bigint[], claims text[])
returns table (id bigint, outcome text, source_table text, record_key text)
language plpgsql
set search_path = ''
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  found_rows bigint;
  gone_rows bigint;
  changed_rows bigint;
begin
  return query
    select taken.id, 'gone', taken.source_table, taken.record_key
    from dynamics_sync.give_back_taken(ids, claims) as taken;
  get diagnostics found_rows = row_count;
  if found_rows = cardinality(ids) then
    return;
  end if;
  return query
    with done as (
      select held.id
      from unnest(ids, versions, claims) as given (id, version, claim_id)
      cross join lateral (
        select o.id from dynamics_sync.outbox o
        where o.id = given.id and o.lease_owner = given.claim_id and o.version = given.version
        for update skip locked
      ) as held
    ),
    gone as (
      delete from dynamics_sync.outbox o where o.id = any(array(select done.id from done))
      returning o.id, o.target, o.source_table, o.record_key, o.changed_columns
    ),
    noted as (
      select dynamics_sync.note_changed_here(gone.target, gone.source_table, gone.record_key, gone.changed_columns)
      from gone
      cross join lateral (
        select from dynamics_sync.inbox_records known
        where (known.target, known.source_table, known.record_key) = (gone.target, gone.source_table, gone.record_key)
          and known.taken <> '{}'
        limit 1
      ) as is_known
    )
    select gone.id, 'gone', gone.source_table, gone.record_key from gone where (select count(*) from noted) >= 0;
  get diagnostics gone_rows = row_count;
  found_rows := found_rows + gone_rows;
  if found_rows = cardinality(ids) then
    return;
  end if;
  -- A statement of its own: together with the deletion it would race with the trigger's upsert.
  return query
    with changed as (
      select held.id
      from unnest(ids, versions, claims) as given (id, version, claim_id)
      cross join lateral (
        select o.id from dynamics_sync.outbox o
        where o.id = given.id and o.lease_owner = given.claim_id and o.version <> given.version
        for update skip locked
      ) as held
    )
    update dynamics_sync.outbox o set lease_owner = null, lease_until = null
    where o.id = any(array(select changed.id from changed))
    returning o.id, 'changed', o.source_table, o.record_key;
  get diagnostics changed_rows = row_count;
  if found_rows + changed_rows = cardinality(ids) then
    return;
  end if;
  return query
    select still.id, 'locked', null::text, null::text from dynamics_sync.still_claimed(ids, claims) as still (id);
end
$$;

-- Let go of claimed rows that were not sent: they wait for their next turn, with the attempts that are behind them. Gives
-- those that are still claimed, as a user's transaction has locked them.
create function dynamics_sync.release(
  ids bigint[], claims text[], attempts integer[], unanswered bigint[], late_seconds double precision
) returns bigint[]
language plpgsql
set search_path = ''
set enable_seqscan = off
as $$
declare
  freed record;
begin
  perform dynamics_sync.unfold_claimed(ids, claims);
  perform dynamics_sync.note_unanswered_of(unanswered, late_seconds);

  for freed in
    with held as (
      select mine.id, given.attempts
      from unnest(ids, claims, attempts) as given (id, claim_id, attempts)
      cross join lateral (
        select o.id from dynamics_sync.outbox o where o.id = given.id and o.lease_owner = given.claim_id
        for update skip locked
      ) as mine
    )
    update dynamics_sync.outbox o
    set lease_owner = null, lease_until = null, attempts = (select held.attempts from held where held.id = o.id)
    where o.id = any(array(select held.id from held))
    returning o.target, o.source_table, o.record_key
  loop
    perform dynamics_sync.forget_payload(freed.target, freed.source_table, freed.record_key);
  end loop;

  return array(select dynamics_sync.still_claimed(ids, claims));
end
$$;

-- Records arrived in Dynamics: give them back, note what Dynamics holds now, and close the queue entries of those that
-- are in their newest state. What was not sent, as Dynamics had it already, changes nothing of what is noted. Gives those
-- that are left: still ours, as a user's transaction has locked them, or else passed to somebody else while we sent them.
-- Rows are given back first: whoever doubts what Dynamics holds has the outbox's row, and either comes before, and the
-- version is another, or afterwards.
create function dynamics_sync.settle(
  of_target text, ids bigint[], versions bigint[], claims text[], etags text[], payload_hashes bytea[], unsent bigint[],
  unanswered bigint[], late_seconds double precision
)
returns table (id bigint, is_ours boolean)
language plpgsql
set search_path = ''
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  back_ids bigint[];
  outcomes text[];
  tables text[];
  record_keys text[];
  arrived record;
begin
  perform pg_catalog.set_config('synchronous_commit', 'off', true);
  if cardinality(unanswered) > 0 then
    perform dynamics_sync.unfold_claimed(ids, claims);
    perform dynamics_sync.note_unanswered_of(unanswered, late_seconds);
  end if;

  select array_agg(back.id), array_agg(back.outcome), array_agg(back.source_table), array_agg(back.record_key)
  into back_ids, outcomes, tables, record_keys
  from dynamics_sync.give_back(ids, versions, claims) as back;

  insert into dynamics_sync.record_state as known
    (target, source_table, record_key, applied_version, etag, payload_hash)
  select of_target, back.source_table, back.record_key, given.version, given.etag,
    case
      when back.outcome = 'gone' and not (
        (select exists (select from dynamics_sync.unanswered u where u.target = of_target))
        and exists (
          select from dynamics_sync.unanswered u
          where (u.target, u.source_table, u.record_key) = (of_target, back.source_table, back.record_key)
        )
      )
      then given.payload_hash
    end
  from unnest(back_ids, outcomes, tables, record_keys) as back (id, outcome, source_table, record_key)
  join unnest(ids, versions, etags, payload_hashes) as given (id, version, etag, payload_hash) on given.id = back.id
  where back.outcome in ('gone', 'changed') and back.id <> all(unsent)
  on conflict (target, source_table, record_key) do update
  set applied_version = excluded.applied_version, etag = excluded.etag, payload_hash = excluded.payload_hash,
    applied_at = excluded.applied_at;

  -- The queue belongs to service_role, and row-level security binds even its owner.
  set local role service_role;
  -- By the record, one at a time: for many ids the planner may walk through a whole index that ends in the id.
  for arrived in
    select back.source_table, back.record_key
    from unnest(outcomes, tables, record_keys) as back (outcome, source_table, record_key)
    cross join lateral (
      select from public.dynamics_sync_retry_queue q
      where (q.target, q.source_table, q.record_key) = (of_target, back.source_table, back.record_key)
        and q.status in ('pending_manual_replay', 'requires_investigation', 'replaying')
      limit 1
    ) as is_queued
    where back.outcome = 'gone' and (
      select exists (
        select from public.dynamics_sync_retry_queue q
        where q.target = of_target and q.status in ('pending_manual_replay', 'requires_investigation', 'replaying')
      )
    )
  loop
    update public.dynamics_sync_retry_queue q
    set status = case status when 'replaying' then 'replayed' else 'superseded' end, updated_at = clock_timestamp()
    where (q.target, q.source_table, q.record_key) = (of_target, arrived.source_table, arrived.record_key)
      and q.status in ('pending_manual_replay', 'requires_investigation', 'replaying');
  end loop;
  reset role;

  return query
    select given.id, back.id is not null
    from unnest(ids) as given (id)
    left join unnest(back_ids, outcomes) as back (id, outcome) on back.id = given.id
    where back.outcome is null or back.outcome = 'locked';
end
$$;

-- Unanswered requests whose time is over can no longer take effect: what they may have written is written over now. A
-- record in the queue is left to the person who replays it; one that a user's transaction has locked is left for later.
create function dynamics_sync.resend_unanswered(of_target text, at_most integer) returns void
language plpgsql
set search_path = ''
set lock_timeout = '100ms'
as $$
declare
  late record;
  is_queued boolean;
begin
  for late in
    select u.source_table, u.record_key from dynamics_sync.unanswered u
    where u.target = of_target and u.until <= clock_timestamp()
    order by u.until
    limit at_most
    for update skip locked
  loop
    begin
      -- The outbox's row first, as settling does; not waiting for it, as this holds others meanwhile.
      perform from dynamics_sync.outbox o
      where (o.target, o.source_table, o.record_key) = (of_target, late.source_table, late.record_key)
      for update skip locked;
      continue when not found and exists (
        select from dynamics_sync.outbox o
        where (o.target, o.source_table, o.record_key) = (of_target, late.source_table, late.record_key)
      );
      set local role service_role;
      is_queued := exists (
        select from public.dynamics_sync_retry_queue q
        where (q.target, q.source_table, q.record_key) = (of_target, late.source_table, late.record_key)
          and q.status in ('pending_manual_replay', 'requires_investigation')
      );
      reset role;
      if not is_queued then
        perform dynamics_sync.mark_dirty(of_target, late.source_table, late.record_key);
      end if;
      delete from dynamics_sync.unanswered u
      where (u.target, u.source_table, u.record_key) = (of_target, late.source_table, late.record_key);
    exception when lock_not_available then
      null;
    end;
  end loop;
end
$$;

-- An outage is an incident. It begins and ends in the transaction that opens and closes the circuit, whoever does that.
create function dynamics_sync.note_incident() returns trigger
language plpgsql
set search_path = ''
as $$
declare
  incident bigint;
  since timestamptz;
begin
  if new.failure_count = 0 then
    new.failing_since := null;
  elsif old.failure_count = 0 then
    new.failing_since := clock_timestamp();
  end if;
  if new.state = old.state then
    return new;
  end if;
  if old.state = 'closed' then
    insert into dynamics_sync.incidents as i (target, failing_since, error_code, failure_count)
    values (
      new.target, coalesce(new.failing_since, clock_timestamp()), coalesce(new.last_error_code, 'unknown'),
      new.failure_count
    )
    returning i.id, i.failing_since into incident, since;
  else
    update dynamics_sync.incidents i
    set failure_count = greatest(i.failure_count, new.failure_count),
      closed_at = case when new.state = 'closed' then clock_timestamp() end
    where i.target = new.target and i.closed_at is null
    returning i.id, i.failing_since into incident, since;
  end if;
  perform dynamics_sync.join_incident(new.target, incident, since);
  return new;
end
$$;

-- Entries made since the first of the failures in a row belong to the incident too; those made later are given its
-- number at once. Nobody's lock on the queue keeps a circuit from opening: what is locked now joins at its next change.
create function dynamics_sync.join_incident(of_target text, incident bigint, since timestamptz) returns void
language plpgsql
set search_path = ''
as $$
begin
  set local role service_role;
  lock table public.dynamics_sync_retry_queue in row exclusive mode nowait;
  with made as (
    select q.id from public.dynamics_sync_retry_queue q
    where q.status in ('pending_manual_replay', 'requires_investigation') and q.created_at >= since
      and q.target = of_target and q.incident_id is null
    for update skip locked
  )
  update public.dynamics_sync_retry_queue q set incident_id = incident from made where q.id = made.id;
  reset role;
exception
  when lock_not_available then null;
end
$$;

create trigger note_incident before update on dynamics_sync.circuit
for each row execute function dynamics_sync.note_incident();

-- The outbox trigger. It runs in the user's own transaction, with the owner's rights: whoever may change the table
-- needs no right on the outbox. Whatever runs with more rights than the user has searches pg_temp last: unnamed it would
-- come first, and a type that the user plants there, such as a domain `text`, would run the user's code.
-- No statement of the user's ever fails here, whatever became of the table since it was watched.

-- What the column is called now that was the key when the trigger was made: it may have been renamed. Partitions have
-- their triggers from a parent.
create function dynamics_sync.key_now(relation oid, trigger_name name, key_number smallint) returns name
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive made as (
    select t.tgrelid, t.tgparentid from pg_trigger t where t.tgrelid = relation and t.tgname = trigger_name
    union all
    select t.tgrelid, t.tgparentid from made join pg_trigger t on t.oid = made.tgparentid
  )
  select a.attname from made
  join pg_attribute a on a.attrelid = made.tgrelid and a.attnum = key_number and not a.attisdropped
  where made.tgparentid = 0
$$;

-- For a table that shares its rows with others, row by row: PostgreSQL has no transition tables there. Arguments:
-- target, key column, table (a partition's trigger would name the partition), the key's number, and the columns that
-- count, or '' for all.
create function dynamics_sync.capture() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  target constant text := tg_argv[0];
  key_column text := tg_argv[1];
  source_table constant text := tg_argv[2];
  watched constant text[] := nullif(tg_argv[4], '');
  old_row jsonb;
  new_row jsonb;
  old_key text;
  new_key text;
  changed text[] := '{}';
begin
  if tg_op <> 'INSERT' then old_row := to_jsonb(old); end if;
  if tg_op <> 'DELETE' then new_row := to_jsonb(new); end if;
  if not coalesce(new_row, old_row) ? key_column then
    key_column := dynamics_sync.key_now(tg_relid, tg_name, tg_argv[3]::smallint);
  end if;
  old_key := old_row ->> key_column;
  new_key := new_row ->> key_column;
  if tg_op = 'UPDATE' then
    changed := array(
      select field.key from jsonb_each(new_row) as field
      where old_row -> field.key is distinct from field.value order by 1
    );
    if new_row ?& watched and old_key is not distinct from new_key then
      changed := array(select name from unnest(changed) as name where name = any (watched));
    end if;
    if changed = '{}' then
      return null;
    end if;
  end if;
  insert into dynamics_sync.changes (target, source_table, operation_type, changed_columns, records, record_keys)
  select target, source_table, 'delete', '{}', 1, array[old_key]
  where old_key <> new_key or new_key is null and old_key is not null
  union all
  select target, source_table, 'upsert', changed, 1, array[new_key] where new_key is not null;
  perform dynamics_sync.wake(target);
  return null;
end
$$;

-- Whether the table that a function captures has got columns since there were so many. Where all else in the question is
-- constant, PostgreSQL asks it when it makes a plan, and makes another one when the table is altered: therefore it is
-- called immutable, and only for plans that read the table's rows.
create function dynamics_sync.has_grown(capture regproc, columns_known smallint) returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select c.relnatts > columns_known from pg_trigger t join pg_class c on c.oid = t.tgrelid where t.tgfoid = capture limit 1
$$;

-- For any other table, statement by statement: the text of a function that notes all that one has changed.
-- A name that the table no longer has must not fail. So each is looked for in the row alone first (`plain`), and around
-- it next (`instead`): there the key is what it is called now, and another column is the whole row, so that all changes
-- count where it is not known what became of one. PostgreSQL plans anew when the table is altered: this costs nothing.
-- A key that is gone for good, or null, names no record. Where all columns count (`columns_known` is how many the table
-- had), there may be more by now: then the rows are asked for their names.
-- Values are compared as they are stored (`*<>`): each type can be, and equal ones may be written differently.
-- `offset 0` has each text and each comparison made once. A thousand records at most are noted together. What is tried first
-- is for a single row whose key stays: it finds nothing where there are more, or where the table has grown.
create function dynamics_sync.capturing(
  function_name name, target text, source_table text, key_column name, key_number smallint, watched name[],
  columns_known smallint
) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $function$
  with other as (
    select name, n from unnest(watched) with ordinality as given (name, n) where name <> key_column
  ),
  words as (
    select coalesce(string_agg(format(', row(r.*) as %I', name), '' order by n), '') as instead,
      coalesce(string_agg(format(', %I as c%s', name, n), '' order by n), '') as values,
      string_agg(
        format(
          ', n.k is not null and (o.k is distinct from n.k or row(o.c%s)::record *<> row(n.c%1$s)::record) as d%1$s', n
        ),
        '' order by n
      ) as compared,
      string_agg(format(', pair.d%s', n), '' order by n) as differences,
      string_agg(format(' or pair.d%s', n), '' order by n) as any_difference,
      format(
        'array_remove(array[case when pair.is_new then %L end%s], null)', key_column,
        string_agg(format(', case when pair.d%s then %L end', n, name), '' order by name)
      ) as changed,
      format(
        'array_remove(array[null%s], null)', string_agg(
          format(', case when row(o.c%s)::record *<> row(n.c%1$s)::record then %L end', n, name), '' order by name
        )
      ) as changed_in_place
    from other
  ),
  ways (way, picked, compared, differences, any_difference, changed) as (
    select 'by name', words.values, words.compared, words.differences, words.any_difference, words.changed from words
    union all
    select 'whole', ', (plain.*)::record as whole',
      ', o.whole *<> n.whole as differs, array(
          select field.key from jsonb_each(to_jsonb(n.whole)) as field
          where to_jsonb(o.whole) -> field.key is distinct from field.value order by 1
        ) as changed',
      ', pair.changed', ' or pair.differs', 'pair.changed'
    where columns_known is not null
  ),
  sides as (
    select ways.*, got.rows[1] as olds, got.rows[2] as news
    from words
    cross join ways
    cross join lateral (
      select array_agg(format(
        $sql$
        select got.* from %s as r
        cross join lateral (
          select to_jsonb(r.*) ->> dynamics_sync.key_now(%I.tg_relid, %2$I.tg_name, %L) as %I%s
        ) as instead
        cross join lateral (select %4$I::text collate "C" as k%6$s from (select r.*) as plain) as got
      $sql$, known.transition, function_name, key_number, key_column, words.instead, ways.picked
      ) order by known.n) as rows
      from unnest('{old_rows,new_rows}'::text[]) with ordinality as known (transition, n)
    ) as got
  ),
  updates as (
    select way, format(
      $sql$
    insert into dynamics_sync.changes (target, source_table, operation_type, changed_columns, records, record_keys)
    select %L, %L, case when pair.is_gone then 'delete' else 'upsert' end, %s, count(*), array_agg(pair.k)
    from (
      select coalesce(n.k, o.k) as k, o.k is null as is_new, n.k is null as is_gone,
        (row_number() over () - 1) / 1000 as part%s
      from (%s offset 0) as o
      full join (%s offset 0) as n on n.k = o.k
      offset 0
    ) as pair
    where pair.k is not null and (pair.is_new or pair.is_gone%s)
    group by pair.part, pair.is_new, pair.is_gone%s;$sql$,
      target, source_table, changed, compared, olds, news, any_difference, differences
    ) as statement
    from sides
  ),
  single as (
    select format(
      $sql$
    insert into dynamics_sync.changes (target, source_table, operation_type, changed_columns, records, record_keys)
    select %L, %L, 'upsert', pair.changed, 1, array[pair.k]
    from (
      select n.k, %s as changed
      from (%s) as o
      cross join (%s) as n
      where n.k = o.k and not exists (select from new_rows offset 1)%s
      offset 0
    ) as pair
    where pair.changed <> '{}';$sql$,
      target, source_table, words.changed_in_place, sides.olds, sides.news,
      case when columns_known is not null then
        format(' and not dynamics_sync.has_grown(%L, %L)', 'dynamics_sync.' || function_name, columns_known)
      end
    ) as statement
    from sides
    cross join words
    where way = 'by name'
  ),
  others as (
    select event.name, format(
      $sql$
    insert into dynamics_sync.changes (target, source_table, operation_type, records, record_keys)
    select %L, %L, %L, count(*), array_agg(one.k)
    from (select got.k, (row_number() over () - 1) / 1000 as part from (%s offset 0) as got where got.k is not null) as one
    group by one.part;$sql$,
      target, source_table, event.operation_type, event.rows
    ) as statement
    from sides
    cross join lateral (
      values ('insert', 'upsert', news), ('delete', 'delete', olds)
    ) as event (name, operation_type, rows)
    where way = 'by name'
  )
  select format(
    $sql$
#variable_conflict use_column
begin
  if tg_op = 'INSERT' then%s
  elsif tg_op = 'DELETE' then%s
  else%s
    if not found then
      if %s then%s
      else%s
      end if;
    end if;
  end if;
  if found then%s
  end if;
  return null;
end
$sql$,
    (select statement from others where name = 'insert'),
    (select statement from others where name = 'delete'),
    (select statement from single),
    case when columns_known is null then 'false' else
      format('(select c.relnatts > %s from pg_class c where c.oid = tg_relid)', columns_known)
    end,
    coalesce((select statement from updates where way = 'whole'), ' null;'),
    (select statement from updates where way = 'by name'),
    dynamics_sync.waking(quote_literal(target))
  )
$function$;

-- The keys of all rows. It runs as service_role, as row-level security hides rows even from a table's owner.
do $do$
declare
  installer constant name := current_user;
begin
  grant usage, create on schema dynamics_sync to service_role;
  set local role service_role;
  create function dynamics_sync.keys_of(source regclass, key_column name) returns setof text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return query execute format('select %I::text from %s', key_column, source);
  end
  $$;
  revoke execute on function dynamics_sync.keys_of from public, anon, authenticated, service_role;
  execute format('grant execute on function dynamics_sync.keys_of to %I', installer);
  -- Not `reset role`: Supabase's tool logs in as another role, which only takes that of the owner.
  perform set_config('role', installer, true);
  revoke all on schema dynamics_sync from service_role;
end
$do$;

-- Note a change of each record that a table has; gives how many. What Dynamics is believed to hold of them is doubted.
create function dynamics_sync.note_keys(
  of_target text, of_table text, of_type text, source regclass, key_column name
) returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
  with noted as (
    insert into dynamics_sync.changes (target, source_table, operation_type, records, record_keys, is_doubt)
    select of_target, of_table, of_type, count(*), array_agg(one.key), true
    from (
      select key, (row_number() over () - 1) / 1000 as part
      from dynamics_sync.keys_of(source, key_column) as key where key is not null
    ) as one
    group by one.part
    returning records
  )
  select coalesce(sum(records), 0) from noted
$$;

-- TRUNCATE fires no other trigger: without this one, Dynamics would keep what the table has lost.
create function dynamics_sync.capture_truncate() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  key_column constant name := coalesce(
    (select a.attname from pg_attribute a where a.attrelid = tg_relid and a.attname = tg_argv[1]),
    dynamics_sync.key_now(tg_relid, tg_name, tg_argv[3]::smallint)
  );
begin
  if key_column is not null then
    perform dynamics_sync.note_keys(tg_argv[0], tg_argv[2], 'delete', tg_relid, key_column);
    perform dynamics_sync.wake(tg_argv[0]);
  end if;
  return null;
end
$$;

-- Capture every change of a table for a target from now on; a table may be watched for several. The key column is the
-- primary key unless another is named; it must be unique and not null. service_role, whose rights the worker reads with,
-- is given select on the table. Where columns are named, an update of others is no change.
create function dynamics_sync.watch(
  source regclass, key_column name default null, target text default 'dynamics', columns name[] default null
) returns void
language plpgsql
set search_path = ''
set client_min_messages = warning
as $$
declare
  key_type oid;
  key_number smallint;
  schema_name name;
  table_name name;
  missing name;
  known name[];
  columns_known smallint;
  shares_rows boolean;
  function_name name;
  arguments text;
  event record;
begin
  if target !~ '^[a-z][a-z0-9_]{0,29}$' then
    raise exception 'dynamics_sync.watch: % is no name of a target', target
      using hint = 'A target has a short name of small letters, digits and underscores, such as dynamics or portal.';
  end if;
  select n.nspname, c.relname into schema_name, table_name
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = source and c.relkind in ('r', 'p');
  if not found then
    raise exception 'dynamics_sync.watch: % is not a table', source
      using hint = 'Views and foreign tables have no row changes to capture; watch the tables behind them.';
  end if;
  if key_column is null then
    select a.attname into key_column
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = source and i.indisprimary and i.indnkeyatts = 1;
    if not found then
      raise exception 'dynamics_sync.watch: % has no primary key of one column', source
        using hint = 'Name a unique, not null column: select dynamics_sync.watch(''...'', ''column'').';
    end if;
  end if;
  select a.atttypid, a.attnum into key_type, key_number from pg_catalog.pg_attribute a
  where a.attrelid = source and a.attname = key_column and a.attnotnull and not a.attisdropped
    and exists (
      select from pg_catalog.pg_index i
      where i.indrelid = source and i.indisunique and i.indnkeyatts = 1 and i.indkey[0] = a.attnum
        and i.indpred is null
    );
  if not found then
    raise exception 'dynamics_sync.watch: column % of % is not a unique, not null column', key_column, source
      using hint = 'The key identifies the record in Dynamics, so it must identify one row here.';
  end if;
  if not exists (
    select from pg_catalog.pg_type declared
    join pg_catalog.pg_type t on t.oid = case declared.typtype when 'd' then declared.typbasetype else declared.oid end
    where declared.oid = key_type
      and (t.typtype = 'e' or t.typname in ('uuid', 'int2', 'int4', 'int8', 'numeric', 'text', 'varchar'))
  ) then
    raise exception 'dynamics_sync.watch: column % of % has type %, which cannot be a key', key_column, source,
      format_type(key_type, null)
      using hint = 'A key is a uuid, an integer, a numeric, a text or an enumeration: their values are written in one '
        'way only. Name such a column; it may be a generated one.';
  end if;
  select name into missing from unnest(columns) as name
  where not exists (
    select from pg_catalog.pg_attribute a where a.attrelid = source and a.attname = name and a.attnum > 0
  );
  if found then
    raise exception 'dynamics_sync.watch: % has no column %', source, coalesce(quote_ident(missing), 'null');
  end if;

  -- A trigger does not see what a virtual column's value is.
  if exists (
    select from pg_catalog.pg_attribute a
    where a.attrelid = source and a.attname = any (columns) and a.attgenerated = 'v'
  ) then
    columns := null;
  end if;

  perform dynamics_sync.unwatch(source, target);
  arguments := format(
    '(%L, %L, %L, %L, %L)', target, key_column, schema_name || '.' || table_name, key_number,
    coalesce(columns::text, '')
  );
  -- A partition's or a child's rows are changed by statements on its parent, too, and logical replication changes rows
  -- without any statement: neither fires a statement's trigger.
  shares_rows := exists (
    select from pg_catalog.pg_class c where c.oid = source and (c.relkind = 'p' or c.relhassubclass or c.relispartition)
  ) or exists (select from pg_catalog.pg_inherits i where i.inhrelid = source)
    or exists (select from pg_catalog.pg_subscription_rel r where r.srrelid = source);
  if shares_rows then
    execute format(
      'create trigger %I after insert or update or delete on %s for each row execute function dynamics_sync.capture%s',
      'dynamics_sync_capture_' || target, source, arguments
    );
  else
    select array_agg(a.attname order by a.attnum) into known
    from pg_catalog.pg_attribute a where a.attrelid = source and a.attnum > 0 and not a.attisdropped;
    if columns is null then
      select c.relnatts into columns_known from pg_catalog.pg_class c where c.oid = source;
    end if;
    function_name := 'capture_' || nextval('dynamics_sync.change_version');
    execute format(
      'create function dynamics_sync.%I() returns trigger language plpgsql security definer
       set search_path = pg_catalog, pg_temp set jit = off set enable_mergejoin = off as %L',
      function_name,
      dynamics_sync.capturing(
        function_name, target, schema_name || '.' || table_name, key_column, key_number, coalesce(columns, known),
        columns_known
      )
    );
    execute format(
      'revoke execute on function dynamics_sync.%I from public, anon, authenticated, service_role', function_name
    );
    for event in
      select * from (values
        ('insert', 'insert', 'referencing new table as new_rows'),
        ('capture', 'update', 'referencing old table as old_rows new table as new_rows'),
        ('delete', 'delete', 'referencing old table as old_rows')
      ) as of_trigger (prefix, event, transition)
    loop
      execute format(
        'create trigger %I after %s on %s %s for each statement execute function dynamics_sync.%I%s',
        'dynamics_sync_' || event.prefix || '_' || target, event.event, source, event.transition, function_name,
        arguments
      );
    end loop;
    -- It never fires. While it is there, PostgreSQL refuses to make the table a partition or child of another, whose
    -- statements would change rows unnoticed.
    execute format(
      'create trigger %I after insert on %s referencing new table as new_rows for each row when (false)
       execute function dynamics_sync.%I%s',
      'dynamics_sync_unshared_' || target, source, function_name, arguments
    );
  end if;
  execute format(
    'create trigger %I before truncate on %s
     for each statement execute function dynamics_sync.capture_truncate%s',
    'dynamics_sync_truncate_' || target, source, arguments
  );
  execute format('grant usage on schema %I to service_role', schema_name);
  execute format('grant select on %s to service_role', source);
end
$$;

-- Stop capturing a table's changes for a target. What waits in the outbox is still sent. Functions of tables that were
-- dropped go, too.
create function dynamics_sync.unwatch(source regclass, target text default 'dynamics') returns void
language plpgsql
set search_path = ''
set client_min_messages = warning
as $$
declare
  prefix text;
  unused regprocedure;
begin
  foreach prefix in array array['capture', 'insert', 'delete', 'unshared', 'truncate'] loop
    execute format('drop trigger if exists %I on %s', 'dynamics_sync_' || prefix || '_' || target, source);
  end loop;
  for unused in
    select p.oid from pg_catalog.pg_proc p
    where p.pronamespace = 'dynamics_sync'::regnamespace and p.proname ~ '^capture_[0-9]+$'
      and not exists (select from pg_catalog.pg_trigger t where t.tgfoid = p.oid)
  loop
    execute format('drop function %s', unused);
  end loop;
end
$$;

-- Mark every row of a table dirty for a target that it is watched for: the first load, or after a restored backup.
create function dynamics_sync.resync(source regclass, target text default 'dynamics') returns bigint
language plpgsql
set search_path = ''
as $$
declare
  arguments text[];
  marked bigint;
begin
  select string_to_array(encode(t.tgargs, 'escape'), '\000') into arguments
  from pg_catalog.pg_trigger t
  where t.tgrelid = source and t.tgname = 'dynamics_sync_capture_' || target;
  if not found then
    raise exception 'dynamics_sync.resync: % is not watched for %', source, target
      using hint = 'Call dynamics_sync.watch for it first.';
  end if;
  marked := dynamics_sync.note_keys(arguments[1], arguments[3], 'upsert', source, arguments[2]);
  perform pg_notify('dynamics_sync', arguments[1]);
  return marked;
end
$$;

revoke execute on all functions in schema dynamics_sync from public, anon, authenticated, service_role;
