"""A server as Supabase runs it: `supabase_admin` is its superuser, `postgres` owns the database and is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from support.postgres import binaries, temporary_server

PASSWORD = "only-here"
API_ROLES = ("anon", "authenticated", "service_role")

AUTHENTICATOR = f"""
create role authenticator login noinherit password '{PASSWORD}';
grant anon, authenticated, service_role to authenticator;
"""

ROLES = f"""
create role postgres login createdb createrole replication bypassrls password 'only-here';
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
{AUTHENTICATOR}
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
do $$ begin
  if current_setting('server_version_num')::int >= 160000 then
    grant anon, authenticated, service_role to postgres with admin option;
  end if;
end $$
"""

SCHEMAS = """
create schema auth;
create schema extensions;
create schema graphql_public;
create schema realtime;
create schema storage;
grant usage on schema auth, extensions, public to postgres, anon, authenticated, service_role;
create table auth.users (id uuid primary key);
grant references on auth.users to postgres;
create function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''), nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$$;
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;
create function auth.role() returns text language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
  )::text
$$
"""

CLI_LOGIN = """
create role cli_login_postgres login noinherit password 'only-here';
grant postgres to cli_login_postgres
"""
"""How Supabase's own tool logs in: as a role of its own, which takes that of `postgres`."""

HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text
"""
"""What that tool makes before it applies a migration."""

GRANT_ON_EVERYTHING_NEW = """
alter default privileges for role postgres in schema public
  grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to postgres, anon, authenticated, service_role
"""
"""What projects had until 2026; newer ones grant nothing."""


@contextmanager
def bare_server(name: str) -> Iterator[str]:
    """The address of a superuser, `supabase_admin`, of a server that has no other role."""
    with temporary_server(binaries(name)) as server:
        # No session can rename its own role.
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("create role renamer superuser login password 'only-here'")
        with psycopg.connect(server.url, user="renamer", password=PASSWORD, autocommit=True) as connection:
            connection.execute("alter role postgres rename to supabase_admin")
        with psycopg.connect(server.url, user="supabase_admin", autocommit=True) as connection:
            connection.execute("drop role renamer")
        yield make_conninfo(server.url, user="supabase_admin")


@contextmanager
def roles(superuser: str, statements: str) -> Iterator[None]:
    """These roles, on a server without any. All but the superuser are dropped at the end."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(statements.encode())
        yield
        found = connection.execute("select rolname from pg_roles where rolname !~ '^pg_' and not rolsuper").fetchall()
        for (name,) in found:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@contextmanager
def database_of(owner: str, superuser: str, inside: str = "") -> Iterator[str]:
    """The owner's address of a new database, dropped at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(superuser, autocommit=True) as connection:
        create = sql.SQL("create database {} owner {} strategy file_copy")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(owner)))
        with psycopg.connect(superuser, dbname=name) as within:
            within.execute(inside.encode())
        try:
            yield make_conninfo(superuser, user=owner, password=PASSWORD, dbname=name)
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
