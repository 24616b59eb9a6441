-- What Supabase has in its schema auth, for databases without it. On Supabase nothing happens here.
-- Policies' functions call these with more rights than the user has: pg_temp is searched last.
do $bootstrap$
begin
  if to_regnamespace('auth') is null then
    create schema auth;
    grant usage on schema auth to anon, authenticated, service_role;
  end if;
  if to_regclass('auth.users') is null then
    create table auth.users (id uuid primary key);
  end if;
  if to_regprocedure('auth.jwt()') is null then
    create function auth.jwt() returns jsonb language sql stable set search_path = pg_catalog, pg_temp as $$
      select nullif(current_setting('request.jwt.claims', true), '')::jsonb
    $$;
  end if;
  if to_regprocedure('auth.uid()') is null then
    create function auth.uid() returns uuid language sql stable set search_path = pg_catalog, pg_temp as $$
      select nullif(auth.jwt() ->> 'sub', '')::uuid
    $$;
  end if;
  if to_regprocedure('auth.role()') is null then
    create function auth.role() returns text language sql stable set search_path = pg_catalog, pg_temp as $$
      select auth.jwt() ->> 'role'
    $$;
  end if;
end
$bootstrap$;
