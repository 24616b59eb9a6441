-- The public listing (R20), and the sweep that moves certifications on when their days are over. The listing asks the
-- dates and never what was swept or sent: whoever else fails, nobody stays on it a day too long.

do $do$
declare
  installer constant name := current_user;
begin
  grant create on schema dynamics_certifications to service_role;
  set local role service_role;

  -- The day that it is in a time zone.
  create function dynamics_certifications.today_in(time_zone text) returns date
  language sql
  stable
  set search_path = pg_catalog, pg_temp
  as $$
    select (statement_timestamp() at time zone time_zone)::date
  $$;

  -- The rule: on which days a certification is valid. Where status and dates disagree, it is not: a pending one was not
  -- granted yet, and what is expired or revoked is over, whatever its dates say. The last day counts.
  -- In plpgsql, as it is asked for each certification: in SQL it would take twice as long.
  create function dynamics_certifications.is_valid(status text, issued_on date, expires_on date, day date)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    return coalesce(status in ('active', 'expiring'), false)
      and (issued_on is null or issued_on <= day)
      and expires_on is not null and expires_on >= day;
  end
  $$;

  -- The days of a certification are those of the organisation that it was issued in; a mentor is listed where they are
  -- now. The status is asked for the sake of the index, and once more by the rule, which decides.
  create function dynamics_certifications.listed_mentors()
  returns table (id uuid, display_name text, chapter_id uuid, chapter_name text, organisation_name text)
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  as $$
    with days as materialized (
      select o.id, dynamics_certifications.today_in(o.time_zone) as today from public.organisations o
    )
    select p.id, p.display_name, home.id, home.name, o.name
    from public.peer_mentors p
    join public.chapters home on home.id = p.chapter_id
    join public.organisations o on o.id = home.organisation_id
    where p.id in (
      select c.peer_mentor_id
      from public.certifications c
      join public.chapters ch on ch.id = c.chapter_id
      join days on days.id = ch.organisation_id
      where c.status in ('active', 'expiring')
        and dynamics_certifications.is_valid(c.status, c.issued_on, c.expires_on, days.today)
    )
  $$;

  -- Move up to at_most certifications whose days have come: to expired from the day after the last one, else to expiring
  -- from expiring_days before it. Through the ordinary table, so that each change is captured, and each once: what
  -- another sweep or a person has locked is left for later. Each chapter's are looked up by index, lazily, as lateral
  -- subqueries that lock are: a sweep with nothing to do reads none.
  -- It gives way before PostgreSQL looks for deadlocks, so that it is never a person who loses.
  create function dynamics_certifications.sweep(at_most integer, out expiring integer, out expired integer)
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '500ms'
  as $$
  begin
    with days as materialized (
      select o.id, dynamics_certifications.today_in(o.time_zone) as today from public.organisations o
    ),
    due as materialized (
      select over.id
      from days
      join public.chapters ch on ch.organisation_id = days.id
      cross join lateral (
        select c.id from public.certifications c
        where c.chapter_id = ch.id and c.status in ('active', 'expiring') and c.expires_on < days.today
        for update skip locked
      ) as over
      limit at_most
    )
    update public.certifications c set status = 'expired' where c.id = any (array(select due.id from due));
    get diagnostics expired = row_count;

    -- A century is more than anybody waits for, and a date that no sum leads out of.
    with days as materialized (
      select o.id, day.today, day.today + least(o.expiring_days, 36525) as horizon
      from public.organisations o
      cross join lateral dynamics_certifications.today_in(o.time_zone) as day (today)
    ),
    due as materialized (
      select soon.id
      from days
      join public.chapters ch on ch.organisation_id = days.id
      cross join lateral (
        select c.id from public.certifications c
        where c.chapter_id = ch.id and c.status = 'active' and c.expires_on between days.today and days.horizon
        for update skip locked
      ) as soon
      limit at_most - expired
    )
    update public.certifications c set status = 'expiring' where c.id = any (array(select due.id from due));
    get diagnostics expiring = row_count;
  end
  $$;

  revoke execute on function dynamics_certifications.today_in, dynamics_certifications.is_valid,
    dynamics_certifications.listed_mentors, dynamics_certifications.sweep from public, anon, authenticated;
  grant execute on function dynamics_certifications.listed_mentors to anon, authenticated;
  execute format(
    'grant execute on function dynamics_certifications.listed_mentors, dynamics_certifications.sweep to %I', installer
  );
  perform set_config('role', installer, true);
  revoke create on schema dynamics_certifications from service_role;
end
$do$;

-- A view over a function, as the REST API calls no function of a schema that it does not expose. It runs with the rights
-- of whoever asks, and so gives anon no right on any table.
create view public.public_peer_mentors with (security_invoker = true) as
select id, display_name, chapter_id, chapter_name, organisation_name from dynamics_certifications.listed_mentors();
comment on view public.public_peer_mentors is 'Peer mentors with a certification that is valid today.';
revoke all on public.public_peer_mentors from public, anon, authenticated, service_role;
grant select on public.public_peer_mentors to anon, authenticated, service_role;
