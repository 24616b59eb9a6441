-- What Dynamics tells us by webhooks (R19): stored first, as it came, and applied afterwards.

-- One row for each delivery, however often it is sent. The body holds personal data: it goes once it is no longer needed.
create table dynamics_sync.inbox (
  id bigint generated always as identity primary key,
  target text not null,
  delivery_id text not null,
  received_at timestamptz not null default clock_timestamp(),
  status text not null default 'received' check (
    status in ('received', 'applied', 'superseded', 'ignored', 'unrecognised', 'requires_investigation')
  ),
  entity_name text,
  message text,
  record_id text,
  operation_at timestamptz,
  correlation_id text,
  contract text,
  source_table text,
  record_key text,
  headers jsonb not null,
  body bytea,
  attempts integer not null default 0,
  error_code text,
  place text,
  not_before timestamptz,
  lease_owner text,
  lease_until timestamptz,
  settled_at timestamptz,
  unique (target, delivery_id),
  check (body is not null or status in ('applied', 'superseded', 'ignored'))
);
-- Not compressed: whoever sends it waits meanwhile.
alter table dynamics_sync.inbox alter column body set storage external;
-- What is still to be applied, in order, all of it and by record.
create index inbox_to_apply on dynamics_sync.inbox (target, id) where status = 'received';
create index inbox_of_record on dynamics_sync.inbox (target, entity_name, record_id, id) where status = 'received';
create index inbox_by_status on dynamics_sync.inbox (target, status, id);
create index inbox_settled on dynamics_sync.inbox (settled_at) where status in ('applied', 'superseded', 'ignored');

-- What is known of a record of Dynamics. `newest` has, by attribute, when the newest change was made that was applied
-- here; `taken_version` is the version of the outbox under which a change from Dynamics was taken over last, so that the
-- record_state of that version does not count as something that we wrote there. `written_at` is when we last did, before.
-- `taken` has the columns that are here as Dynamics told, and were not changed here since.
create table dynamics_sync.inbox_records (
  target text not null,
  entity_name text not null,
  record_id text not null,
  source_table text not null,
  record_key text not null,
  newest jsonb not null default '{}',
  taken_version bigint,
  written_at timestamptz,
  taken text[] not null default '{}',
  primary key (target, entity_name, record_id)
) with (fillfactor = 70);
create index inbox_records_of_row on dynamics_sync.inbox_records (target, source_table, record_key);

-- A change made here has left the outbox. Where it is not known what it changed, it may have been any column.
create function dynamics_sync.note_changed_here(of_target text, of_table text, of_key text, of_columns text[])
returns void
language sql
set search_path = ''
set enable_seqscan = off
as $$
  update dynamics_sync.inbox_records
  set taken = case when of_columns = '{}' then '{}' else array(select unnest(taken) except select unnest(of_columns)) end
  where (target, source_table, record_key) = (of_target, of_table, of_key)
$$;
revoke execute on function dynamics_sync.note_changed_here from public, anon, authenticated, service_role;

-- Both sides had changed, or Dynamics lost what the row says. Names and winners, no values.
create table dynamics_sync.conflicts (
  id bigint generated always as identity primary key,
  target text not null,
  source_table text not null,
  record_key text not null,
  column_name text,
  winner text not null check (winner in ('postgres', 'dynamics')),
  inbox_id bigint not null,
  noticed_at timestamptz not null default clock_timestamp()
);
comment on column dynamics_sync.conflicts.column_name is 'Null: the whole record was deleted in Dynamics.';
create index conflicts_by_time on dynamics_sync.conflicts (target, noticed_at);

-- Nobody but the machinery's owner gets at these, whatever may be granted by mistake.
do $$
declare
  table_name text;
begin
  foreach table_name in array array['inbox', 'inbox_records', 'conflicts'] loop
    execute format('revoke all on dynamics_sync.%I from public, anon, authenticated, service_role', table_name);
    execute format('alter table dynamics_sync.%I enable row level security', table_name);
    execute format('alter table dynamics_sync.%I force row level security', table_name);
    execute format(
      'create policy machinery_only on dynamics_sync.%I to current_user using (true) with check (true)', table_name
    );
  end loop;
end
$$;
revoke all on all sequences in schema dynamics_sync from public, anon, authenticated, service_role;
