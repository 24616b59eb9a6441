-- The form of a renewal history's entries (R22), `schema_version`; docs/history.md describes it.
-- certifications/history.py reads entries by the same rules as the functions below, and says the same of wrong ones.
do $do$
declare
  installer constant name := current_user;
begin
  grant create on schema dynamics_certifications to service_role;
  set local role service_role;

  -- A day as entries write it, 2026-11-25, from 0001-01-01 on. Whatever is no text has another form as one, too.
  create function dynamics_certifications.is_day(given text) returns boolean
  language plpgsql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if given !~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$' or left(given, 4) = '0000' then
      return false;
    end if;
    return right(given, 2) <= '28'
      or right(given, 2)::integer <= extract(day from (left(given, 7) || '-01')::date + interval '1 month - 1 day');
  end
  $$;

  create function dynamics_certifications.is_uuid(given text) returns boolean
  language plpgsql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return given ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';
  end
  $$;

  -- What is wrong with an entry; null if nothing is. No value is quoted. Entries of the first form did not say at first
  -- which it is.
  create function dynamics_certifications.problem_of(entry jsonb) returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
  as $$
  declare
    version constant text := case
      when entry ? 'schema_version' then (entry -> 'schema_version')::text
      when entry ? 'renewed_on' then '1'
    end;
  begin
    if jsonb_typeof(entry) is distinct from 'object' then
      return 'it is not an object';
    elsif version = '2' then
      return case
        when not entry ?& array['id', 'event', 'on', 'expires_on', 'recorded_at', 'recorded_by']
          or entry - array['schema_version', 'id', 'event', 'on', 'expires_on', 'recorded_at', 'recorded_by'] <> '{}'
          then 'a key is missing, or not one of its schema_version'
        when dynamics_certifications.is_uuid(entry ->> 'id') is not true then 'id is no UUID'
        when entry -> 'event' not in ('"issued"', '"renewed"', '"revoked"', '"reinstated"', '"expired"')
          then 'event is none of issued, renewed, revoked, reinstated, expired'
        when dynamics_certifications.is_day(entry ->> 'on') is not true then 'on is no day (YYYY-MM-DD)'
        when not dynamics_certifications.is_day(entry ->> 'expires_on')
          then 'expires_on is neither a day (YYYY-MM-DD) nor null'
        when entry ->> 'recorded_at' !~ '^.{10}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z$'
          or not dynamics_certifications.is_day(left(entry ->> 'recorded_at', 10))
          then 'recorded_at is neither a time in UTC (YYYY-MM-DDTHH:MM:SS.ffffffZ) nor null'
        when not dynamics_certifications.is_uuid(entry ->> 'recorded_by') then 'recorded_by is neither a UUID nor null'
      end;
    elsif version = '1' then
      return case
        when not entry ? 'renewed_on' or entry - array['schema_version', 'renewed_on', 'expires_on'] <> '{}'
          then 'a key is missing, or not one of its schema_version'
        when dynamics_certifications.is_day(entry ->> 'renewed_on') is not true then 'renewed_on is no day (YYYY-MM-DD)'
        when not dynamics_certifications.is_day(entry ->> 'expires_on')
          then 'expires_on is neither a day (YYYY-MM-DD) nor null'
      end;
    elsif version ~ '^[1-9][0-9]{0,8}$' then
      return 'its schema_version is later than the latest that is known, 2';
    end if;
    return 'schema_version is missing, or no version number';
  end
  $$;

  -- The first form knew renewals only, and no ids: one is derived (a UUID of version 8), the same at each reading.
  create function dynamics_certifications.upgrade_1(of_certification uuid, at_position integer, entry jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
  as $$
  declare
    digits constant text := encode(sha256(convert_to(of_certification || ':' || at_position, 'UTF8')), 'hex');
  begin
    return jsonb_build_object(
      'schema_version', 2,
      'id', (left(digits, 12) || '8' || substr(digits, 14, 3) || '8' || substr(digits, 18, 15))::uuid,
      'event', 'renewed',
      'on', entry -> 'renewed_on',
      'expires_on', entry ->> 'expires_on',
      'recorded_at', null,
      'recorded_by', null
    );
  end
  $$;

  -- The entries of a history in the current form, counted from 1. What cannot be upgraded stays as it is, and its
  -- problem is told. One plan for all, each step of it done once: left to itself, the planner makes a plan for each
  -- history, and asks for the problem of an entry wherever it is named.
  create function dynamics_certifications.read_history(of_certification uuid, history jsonb)
  returns table (at_position integer, entry jsonb, problem text)
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan
  as $$
  #variable_conflict use_column
  begin
    if jsonb_typeof(history) is distinct from 'array' then
      return query select 0, history, 'the history is not an array';
      return;
    end if;
    return query
      with known as materialized (
        select given.at::integer as at_position, given.entry, dynamics_certifications.problem_of(given.entry) as problem
        from jsonb_array_elements(history) with ordinality as given (entry, at)
      ),
      upgraded as materialized (
        select k.at_position,
          case
            when k.problem is null and k.entry -> 'schema_version' is distinct from '2'
              then dynamics_certifications.upgrade_1(of_certification, k.at_position, k.entry)
            else k.entry
          end as entry,
          k.problem
        from known k
      )
      select u.at_position, u.entry,
        case
          when u.problem is null and count(*) over (partition by u.problem is null, u.entry ->> 'id') > 1
            then 'another entry has the same id'
          else u.problem
        end
      from upgraded u
      order by u.at_position;
  end
  $$;

  -- A history with its entries in the current form, those that cannot be upgraded as they are.
  create function dynamics_certifications.upgraded(of_certification uuid, history jsonb) returns jsonb
  language sql
  immutable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    select case
      when jsonb_typeof(history) = 'array' then coalesce(jsonb_agg(r.entry order by r.at_position), '[]')
      else history
    end
    from dynamics_certifications.read_history(of_certification, history) r
  $$;

  revoke execute on function dynamics_certifications.is_day, dynamics_certifications.is_uuid, dynamics_certifications.problem_of,
    dynamics_certifications.upgrade_1, dynamics_certifications.read_history, dynamics_certifications.upgraded
    from public, anon, authenticated;
  -- public.read_renewals calls it, with the user's rights.
  grant execute on function dynamics_certifications.upgraded to authenticated;
  perform set_config('role', installer, true);
  revoke create on schema dynamics_certifications from service_role;
end
$do$;
