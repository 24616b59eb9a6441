-- What somebody writes who needs no more than this: a dirty set, what was sent last, a row trigger with a NOTIFY.
create schema bare;
create table bare.outbox (
  record_key uuid primary key,
  version bigint generated always as identity unique,
  changed_at timestamptz not null default clock_timestamp(),
  leased_until timestamptz
) with (fillfactor = 70);
create table bare.record_state (
  record_key uuid primary key,
  version bigint not null,
  payload_hash bytea not null,
  sent_at timestamptz not null default clock_timestamp()
) with (fillfactor = 70);
create function bare.capture() returns trigger
language plpgsql
as $$
begin
  insert into bare.outbox (record_key) values (new.id)
  on conflict (record_key) do update set version = default, changed_at = clock_timestamp();
  perform pg_notify('bare', '');
  return null;
end
$$;
create trigger capture after insert or update on public.certificates
for each row execute function bare.capture();
