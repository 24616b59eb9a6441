-- Reconciliation: how far the comparison with Dynamics is, what Dynamics was seen to hold, and what differs.
-- Metadata only. A fingerprint is a digest of what the mapping sends for a row.

create sequence dynamics_sync.reconciliation_run;

-- One reconciliation at a time: whose turn it is, when the last one of all tables began and ended.
create table dynamics_sync.reconciliation (
  target text primary key,
  owner text,
  owned_until timestamptz,
  noticed_at timestamptz not null default clock_timestamp(),
  begun_at timestamptz,
  finished_at timestamptz,
  not_before timestamptz
);

create table dynamics_sync.reconciliation_progress (
  target text not null,
  source_table text not null,
  run bigint not null,
  full_run bigint not null,
  full_at timestamptz not null,
  mapping text not null,
  begun_at timestamptz not null,
  finished_at timestamptz,
  phase text not null check (phase in ('dynamics', 'rows', 'gone', 'done')),
  link text,
  after text,
  delta_link text,
  anchor_id text,
  anchor_etag text,
  newest_id text,
  newest_etag text,
  compared bigint not null,
  waiting bigint not null,
  without_key bigint not null,
  primary key (target, source_table)
);

-- What Dynamics was seen to hold. A fingerprint says that it agreed with the row that had it.
create table dynamics_sync.reconciliation_seen (
  target text not null,
  source_table text not null,
  id text not null,
  record_key text not null,
  fingerprint text,
  seen_in bigint not null,
  primary key (target, source_table, id)
) with (fillfactor = 70);
create index reconciliation_seen_by_key on dynamics_sync.reconciliation_seen (target, source_table, record_key);

create table dynamics_sync.reconciliation_findings (
  target text not null,
  source_table text not null,
  record_key text not null,
  kind text not null check (kind in ('missing', 'different', 'extra')),
  attributes text[] not null,
  found_in bigint not null,
  found_at timestamptz not null default clock_timestamp(),
  repaired_at timestamptz,
  primary key (target, source_table, record_key)
);

revoke all on
  dynamics_sync.reconciliation, dynamics_sync.reconciliation_progress, dynamics_sync.reconciliation_seen,
  dynamics_sync.reconciliation_findings
from public, anon, authenticated, service_role;
revoke all on sequence dynamics_sync.reconciliation_run from public, anon, authenticated, service_role;
