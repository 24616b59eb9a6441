-- The renewal history (R22). The table public.certification_renewal_events has all entries in the current form, in their
-- order; certifications.renewal_history is its copy, but for certifications of which the table has nothing yet:
-- `dynamics-sync history migrate` enters those.

create table public.certification_renewal_events (
  certification_id uuid not null references public.certifications (id) on delete cascade,
  position integer not null check (position > 0),
  id uuid not null default gen_random_uuid(),
  schema_version integer not null default 2 check (schema_version = 2),
  event text not null check (event in ('issued', 'renewed', 'revoked', 'reinstated', 'expired')),
  on_day date not null check (on_day between '0001-01-01' and '9999-12-31'),
  expires_on date check (expires_on between '0001-01-01' and '9999-12-31'),
  recorded_at timestamptz default clock_timestamp()
    check (recorded_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'),
  recorded_by uuid,
  primary key (certification_id, position),
  unique (certification_id, id)
);
comment on column public.certification_renewal_events.recorded_at is 'Null where the first form did not say it.';

alter table public.certification_renewal_events enable row level security;
alter table public.certification_renewal_events force row level security;
revoke all on public.certification_renewal_events from public, anon, authenticated, service_role;
grant select on public.certification_renewal_events to authenticated;
-- Entries stay: they are neither changed nor deleted, but with their certification.
grant select, insert on public.certification_renewal_events to service_role;

create policy who_sees_certification_sees_its_events on public.certification_renewal_events for select to authenticated
using (exists (select from public.certifications c where c.id = certification_id));

do $do$
declare
  installer constant name := current_user;
begin
  grant create on schema dynamics_certifications to service_role;
  set local role service_role;

  -- What the table has of a certification, as renewal_history writes it; the first so many entries, or all.
  create function dynamics_certifications.history_from_table(of_certification uuid, at_most integer default null)
  returns jsonb
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select coalesce(jsonb_agg(
      jsonb_build_object(
        'schema_version', e.schema_version,
        'id', e.id,
        'event', e.event,
        'on', e.on_day,
        'expires_on', e.expires_on,
        'recorded_at', to_char(e.recorded_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'recorded_by', e.recorded_by
      )
      order by e.position
    ), '[]')
    from public.certification_renewal_events e
    where e.certification_id = of_certification and (at_most is null or e.position <= at_most)
  $$;

  -- Whether a copy says what the table does. One that was in an older form still is: so the two may differ in that.
  create function dynamics_certifications.is_copy(of_certification uuid, copy jsonb, original jsonb) returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return copy = original or dynamics_certifications.upgraded(of_certification, copy) = original;
  end
  $$;

  create function dynamics_certifications.is_in_table(of_certification uuid) returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select exists (select from public.certification_renewal_events e where e.certification_id = of_certification)
  $$;

  create function dynamics_certifications.last_position(of_certification uuid) returns integer
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select coalesce(max(e.position), 0) from public.certification_renewal_events e
    where e.certification_id = of_certification
  $$;

  -- What is written to renewal_history, by whomever. Once the table has the history, only its copy may be written; before,
  -- only well-formed entries may be added, whatever is there already.
  create function dynamics_certifications.check_history() returns trigger
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  declare
    wrong record;
    already constant jsonb := case
      when tg_op = 'UPDATE' and jsonb_typeof(old.renewal_history) = 'array' then old.renewal_history
      else '[]'
    end;
  begin
    if dynamics_certifications.is_in_table(new.id) then
      if not dynamics_certifications.is_copy(
        new.id, new.renewal_history, dynamics_certifications.history_from_table(new.id)
      ) then
        raise exception 'The history of certification % is in certification_renewal_events, and renewal_history is only '
          'its copy', new.id using errcode = '23514', hint = 'Append to it with public.append_renewal.';
      end if;
      return new;
    end if;
    -- Others would not see that the table has it by now.
    if tg_op = 'UPDATE' and current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
      raise exception 'The history of certification % is not in certification_renewal_events yet, and may be written in a '
        'read committed transaction only', new.id
        using errcode = '25001', hint = '`dynamics-sync history migrate` brings all histories there.';
    end if;
    select r.at_position, r.problem into wrong
    from dynamics_certifications.read_history(new.id, new.renewal_history) r
    where r.problem is not null
      and (r.at_position = 0 or r.entry in (
        select value from jsonb_array_elements(new.renewal_history)
        except all select value from jsonb_array_elements(already)
      ))
    order by r.at_position
    limit 1;
    if found then
      raise exception 'renewal_history of certification % is refused, entry %: %', new.id, wrong.at_position, wrong.problem
        using errcode = '23514';
    end if;
    return new;
  end
  $$;

  -- Entries of renewal_history that the table lacks, and those that it cannot have.
  create function dynamics_certifications.only_in_copy(of_certification uuid, history jsonb)
  returns table (at_position integer, entry jsonb, problem text)
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select r.at_position, r.entry, r.problem
    from dynamics_certifications.read_history(of_certification, history) r
    where r.problem is not null or r.entry ->> 'id' <> all (array(
      select e.id::text from public.certification_renewal_events e where e.certification_id = of_certification
    ))
    order by r.at_position
  $$;

  -- Whatever enters the table, by whomever, is copied in the same transaction. What only the copy has never gets lost.
  create function dynamics_certifications.copy_history() returns trigger
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  declare
    changed record;
    original jsonb;
    before jsonb;
  begin
    -- Before any of them is looked at, so that all is seen that others committed.
    perform from public.certifications c
    where c.id = any (array(select a.certification_id from added a))
    order by c.id
    for no key update;
    for changed in
      select c.id, c.renewal_history as copy, a.known
      from (select certification_id, min(position) - 1 as known from added group by certification_id) a
      join public.certifications c on c.id = a.certification_id
    loop
      original := dynamics_certifications.history_from_table(changed.id);
      before := dynamics_certifications.history_from_table(changed.id, changed.known);
      -- The comparison that is quick comes first: it is what an append finds.
      continue when changed.copy <> before
        and dynamics_certifications.is_copy(changed.id, changed.copy, original);
      if not dynamics_certifications.is_copy(changed.id, changed.copy, before)
        and exists (select from dynamics_certifications.only_in_copy(changed.id, changed.copy)) then
        raise exception 'renewal_history of certification % has entries that certification_renewal_events lacks',
          changed.id
          using errcode = '23514', hint = 'Append with public.append_renewal, or run `dynamics-sync history migrate`.';
      end if;
      update public.certifications c set renewal_history = original where c.id = changed.id;
    end loop;
    return null;
  end
  $$;

  -- Enter these histories into the table, as far as it has nothing of them. The caller has locked the certifications. A
  -- history with an entry that cannot be upgraded is left as it is.
  create function dynamics_certifications.enter_histories(
    ids uuid[], out migrated integer, out entries integer, out left_ids uuid[], out left_problems text[]
  )
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    with found as materialized (
      select c.id as of_certification, r.at_position, r.entry, r.problem
      from public.certifications c
      cross join lateral dynamics_certifications.read_history(c.id, c.renewal_history) r
      where c.id = any (ids) and not dynamics_certifications.is_in_table(c.id)
    ),
    wrong as (
      select distinct on (f.of_certification) f.of_certification, f.at_position, f.problem
      from found f
      where f.problem is not null
      order by f.of_certification, f.at_position
    ),
    entered as (
      insert into public.certification_renewal_events
        (certification_id, position, id, event, on_day, expires_on, recorded_at, recorded_by)
      select f.of_certification, f.at_position, (f.entry ->> 'id')::uuid, f.entry ->> 'event', (f.entry ->> 'on')::date,
        (f.entry ->> 'expires_on')::date, (f.entry ->> 'recorded_at')::timestamptz, (f.entry ->> 'recorded_by')::uuid
      from found f
      where f.of_certification <> all (array(select w.of_certification from wrong w))
      returning certification_id
    )
    select
      (select count(distinct e.certification_id) from entered e),
      (select count(*) from entered),
      coalesce(array_agg(w.of_certification), '{}'),
      coalesce(array_agg(format('entry %s: %s', w.at_position, w.problem)), '{}')
    into migrated, entries, left_ids, left_problems
    from wrong w;
  end
  $$;

  -- One step of `dynamics-sync history migrate`: the next certifications after this one, or the first. Nobody waits for
  -- it, and it waits for nobody: what is locked now is busy, and left for later.
  create function dynamics_certifications.migrate_histories(
    after uuid, at_most integer,
    out looked_at integer, out last_id uuid, out busy integer,
    out migrated integer, out entries integer, out left_ids uuid[], out left_problems text[]
  )
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_custom_plan
  as $$
  declare
    next_ids constant uuid[] := array(
      select c.id from public.certifications c where after is null or c.id > after order by c.id limit at_most
    );
    due constant uuid[] := array(
      select c.id from public.certifications c
      where c.id = any (next_ids) and c.renewal_history <> '[]' and not dynamics_certifications.is_in_table(c.id)
    );
    locked constant uuid[] := array(
      select c.id from public.certifications c where c.id = any (due) order by c.id for no key update skip locked
    );
  begin
    looked_at := cardinality(next_ids);
    last_id := next_ids[looked_at];
    busy := cardinality(due) - cardinality(locked);
    select e.migrated, e.entries, e.left_ids, e.left_problems into migrated, entries, left_ids, left_problems
    from dynamics_certifications.enter_histories(locked) e;
  end
  $$;

  -- One step of `dynamics-sync history check`: of which of the next certifications the copy differs from the table, and
  -- how many are not in the table yet.
  create function dynamics_certifications.compare_histories(
    after uuid, at_most integer,
    out looked_at integer, out last_id uuid, out not_migrated integer, out differing uuid[]
  )
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_custom_plan
  as $$
    with looked as materialized (
      select c.id, c.renewal_history, dynamics_certifications.is_in_table(c.id) as is_in_table
      from public.certifications c where after is null or c.id > after order by c.id limit at_most
    )
    select count(*), (array_agg(l.id order by l.id desc))[1],
      count(*) filter (where not l.is_in_table and l.renewal_history <> '[]'),
      coalesce(array_agg(l.id order by l.id) filter (
        where l.is_in_table and not dynamics_certifications.is_copy(
          l.id, l.renewal_history, dynamics_certifications.history_from_table(l.id)
        )
      ), '{}')
    from looked l
  $$;

  -- Make the copy what the table says. What only the copy has is entered into the table first. Gives what stands in the
  -- way, or null: then they agree.
  create function dynamics_certifications.repair_history(of_certification uuid) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  declare
    held jsonb;
    obstacle text;
  begin
    select c.renewal_history into held from public.certifications c where c.id = of_certification for no key update;
    if not found or not dynamics_certifications.is_in_table(of_certification) then
      return null;
    end if;
    select format('entry %s: %s', o.at_position, o.problem) into obstacle
    from dynamics_certifications.only_in_copy(of_certification, held) o
    where o.problem is not null
    limit 1;
    if found then
      return obstacle;
    end if;
    insert into public.certification_renewal_events
      (certification_id, position, id, event, on_day, expires_on, recorded_at, recorded_by)
    select of_certification, dynamics_certifications.last_position(of_certification) + row_number() over (),
      (o.entry ->> 'id')::uuid, o.entry ->> 'event', (o.entry ->> 'on')::date, (o.entry ->> 'expires_on')::date,
      (o.entry ->> 'recorded_at')::timestamptz, (o.entry ->> 'recorded_by')::uuid
    from dynamics_certifications.only_in_copy(of_certification, held) o;
    update public.certifications c set renewal_history = dynamics_certifications.history_from_table(c.id)
    where c.id = of_certification and not dynamics_certifications.is_copy(
      c.id, c.renewal_history, dynamics_certifications.history_from_table(c.id)
    );
    return null;
  end
  $$;

  -- Certifications with more than 500 entries, and how many they have.
  create function dynamics_certifications.oversized_histories()
  returns table (certification_id uuid, entries integer)
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select c.id, jsonb_array_length(c.renewal_history) from public.certifications c
    where case when jsonb_typeof(c.renewal_history) = 'array' then jsonb_array_length(c.renewal_history) > 500 else false end
  $$;

  -- Append an entry. The row's lock keeps appends of one certification one after another. One with an id that is there
  -- already is the same append once more, and changes nothing.
  create function dynamics_certifications.append_renewal(
    of_certification uuid, event text, on_day date, expires_on date, entry_id uuid
  ) returns jsonb
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
  #variable_conflict use_variable
  declare
    held jsonb;
    known jsonb;
    wrong text;
    entry constant jsonb := jsonb_build_object(
      'schema_version', 2,
      'id', coalesce(entry_id, gen_random_uuid()),
      'event', event,
      'on', on_day,
      'expires_on', expires_on,
      'recorded_at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
      'recorded_by', auth.uid()
    );
  begin
    select c.renewal_history into held from public.certifications c
    where c.id = of_certification and (
      current_setting('role') = 'service_role'
      or c.chapter_id = any (array(select dynamics_certifications.managed_chapters()))
    )
    for no key update;
    if not found then
      raise exception 'There is no certification with this id whose history you may add to' using errcode = '42501',
        hint = 'Those who manage its chapter may, and service_role.';
    end if;
    if jsonb_typeof(held) <> 'array' then
      raise exception 'renewal_history of certification % is not an array: nothing can be added', of_certification
        using errcode = '23514', hint = 'Have service_role write an array there.';
    end if;
    wrong := dynamics_certifications.problem_of(entry);
    if wrong is not null then
      raise exception 'The entry is refused: %', wrong using errcode = '22023';
    end if;
    if entry_id is not null then
      select r.entry into known from dynamics_certifications.read_history(of_certification, held) r
      where r.entry ->> 'id' = entry_id::text;
    end if;
    if known is not null then
      if (known - 'recorded_at' - 'recorded_by') is distinct from (entry - 'recorded_at' - 'recorded_by') then
        raise exception 'The entry is refused: another one of certification % has this id', of_certification
          using errcode = '23505', hint = 'A repeated append says the same as the first; a new one has a new id, or none.';
      end if;
      return known;
    end if;
    perform dynamics_certifications.enter_histories(array[of_certification]);
    if held = '[]' or dynamics_certifications.is_in_table(of_certification) then
      insert into public.certification_renewal_events
        (certification_id, position, id, event, on_day, expires_on, recorded_at, recorded_by)
      values (
        of_certification, dynamics_certifications.last_position(of_certification) + 1, (entry ->> 'id')::uuid, event,
        on_day, expires_on, (entry ->> 'recorded_at')::timestamptz, auth.uid()
      );
    else
      update public.certifications c set renewal_history = c.renewal_history || entry where c.id = of_certification;
    end if;
    if jsonb_array_length(held) >= 500 then
      raise warning 'history.oversized: certification % has % entries', of_certification, jsonb_array_length(held) + 1;
    end if;
    return entry;
  end
  $$;
  perform set_config('role', installer, true);
  revoke create on schema dynamics_certifications from service_role;
end
$do$;

create trigger check_new_history before insert on public.certifications
for each row when (new.renewal_history <> '[]') execute function dynamics_certifications.check_history();
create trigger check_changed_history before update on public.certifications
for each row when (old.renewal_history is distinct from new.renewal_history)
execute function dynamics_certifications.check_history();
create trigger copy_history after insert on public.certification_renewal_events
referencing new table as added for each statement execute function dynamics_certifications.copy_history();

-- The functions in public call the two that stay, with the user's rights.
do $do$
declare
  installer constant name := current_user;
begin
  set local role service_role;
  revoke execute on function dynamics_certifications.history_from_table, dynamics_certifications.is_copy,
    dynamics_certifications.is_in_table, dynamics_certifications.last_position, dynamics_certifications.check_history,
    dynamics_certifications.only_in_copy, dynamics_certifications.copy_history, dynamics_certifications.enter_histories,
    dynamics_certifications.migrate_histories, dynamics_certifications.compare_histories,
    dynamics_certifications.repair_history, dynamics_certifications.oversized_histories,
    dynamics_certifications.append_renewal from public, anon, authenticated;
  grant execute on function dynamics_certifications.append_renewal to authenticated;
  perform set_config('role', installer, true);
end
$do$;

-- Over REST: POST /rest/v1/rpc/append_renewal. Who may change a certification may lock it, and so append.
create function public.append_renewal(
  certification_id uuid, event text, on_day date, expires_on date default null, entry_id uuid default null
) returns jsonb
language sql
set search_path = pg_catalog, pg_temp
begin atomic
  with changeable as materialized (
    select c.id from public.certifications c where c.id = append_renewal.certification_id for no key update
  )
  select dynamics_certifications.append_renewal(
    (select changeable.id from changeable), append_renewal.event, append_renewal.on_day, append_renewal.expires_on,
    append_renewal.entry_id
  );
end;

-- Over REST: POST /rest/v1/rpc/read_renewals. The whole history in the current form, also where it is not in the table
-- yet; null for a certification that the user may not see.
create function public.read_renewals(certification_id uuid) returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
begin atomic
  select dynamics_certifications.upgraded(c.id, c.renewal_history) from public.certifications c
  where c.id = read_renewals.certification_id;
end;

revoke execute on function public.append_renewal, public.read_renewals from public, anon, authenticated, service_role;
grant execute on function public.append_renewal, public.read_renewals to authenticated, service_role;
