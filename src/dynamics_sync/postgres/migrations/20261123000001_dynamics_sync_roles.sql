-- The roles that Supabase has. A database that lacks them gets them; on Supabase nothing happens here.
do $$
declare
  installer constant name := current_user;
  role_name text;
  statement text;
  needed text[] := '{}';
begin
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
      needed := needed || format(
        'create role %s nologin noinherit%s', role_name, case role_name when 'service_role' then ' bypassrls' else '' end
      );
    elsif role_name = 'service_role' and not (select rolbypassrls from pg_catalog.pg_roles where rolname = role_name) then
      -- Not ours to change: another program may use the role. Without it, hidden rows would look deleted.
      raise exception 'The role service_role exists without bypassrls. Have a superuser run: '
        'alter role service_role bypassrls';
    end if;
  end loop;
  begin
    set local role service_role;
    perform set_config('role', installer, true);
  exception
    when insufficient_privilege or invalid_parameter_value then  -- not a member, or not there yet
      needed := needed || format('grant service_role to %I', installer);
  end;
  foreach statement in array needed loop
    begin
      execute statement;
    exception
      -- Another database of this server is being migrated at the same moment.
      when duplicate_object or unique_violation then null;
    end;
  end loop;
exception
  when insufficient_privilege then
    raise exception 'The role % may not prepare the roles that Supabase has. Have a superuser run: %', installer,
      array_to_string(needed, '; ');
end
$$;

grant usage on schema public to anon, authenticated, service_role;
