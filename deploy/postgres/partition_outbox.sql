-- Partition the outbox by target: each target's rows, index entries and vacuuming are then its own. docs/scaling.md says
-- when that is worth it. Run it as the owner of the outbox, on a migrated database:
--
--   psql "$DYNAMICS_SYNC_DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/partition_outbox.sql
--
-- One statement, so all or nothing. What waits, leases included, is kept. Workers need not stop; they and
-- operators' commands wait for as long as the copy takes, whoever changes a watched table does not. A target that comes
-- later is kept in the partition `outbox_rest` until this is run again; where every target has its partition, running it
-- changes nothing.
--
-- Columns, checks, keys, indexes, triggers and grants are read from the catalogue, so that this fits any version.
do $do$
#variable_conflict use_variable
declare
  outbox regclass;
  is_partitioned boolean;
  owner_name name;
  targets text[];
  storage text;
  definitions text[];
  part text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'partition_outbox: run this in a transaction of its own, which is read committed'
      using hint = 'Another one does not see what was committed while this waited for its lock.';
  end if;

  -- A user's transaction that is still open holds everybody up behind us: rather try again later.
  set local lock_timeout = '5s';
  lock table dynamics_sync.outbox in access exclusive mode;
  outbox := 'dynamics_sync.outbox';

  select relkind = 'p', relowner::regrole::name into is_partitioned, owner_name from pg_class where oid = outbox;
  if current_user <> owner_name then
    raise exception 'partition_outbox: the outbox belongs to %, who must run this', owner_name;
  end if;
  if exists (select from pg_policy where polrelid = outbox)
    or exists (select from pg_publication_rel where prrelid = outbox)
  then
    raise exception 'partition_outbox: the outbox has a policy or is published, which would be lost'
      using hint = 'Drop it first, and make it again afterwards.';
  end if;

  -- Those that wait, those that were in trouble, and those that tables are watched for.
  targets := array(
    select target from dynamics_sync.outbox
    union select target from dynamics_sync.circuit
    union select split_part(encode(t.tgargs, 'escape'), '\000', 1)
    from pg_trigger t join pg_proc f on f.oid = t.tgfoid
    where f.pronamespace = 'dynamics_sync'::regnamespace and t.tgnargs > 0
    order by target
  );
  if is_partitioned
    and not exists (select from unnest(targets) as target where to_regclass('dynamics_sync.outbox_of_' || target) is null)
  then
    raise notice 'partition_outbox: every target has its partition already';
    return;
  end if;

  -- A queue is written over and over: how much room its pages leave is the table's own, or its partitions'.
  select 'with (' || array_to_string(c.reloptions, ', ') || ')' into storage
  from pg_class c
  where (c.oid = outbox or c.oid in (select inhrelid from pg_inherits where inhparent = outbox))
    and c.reloptions is not null
  limit 1;

  -- A unique key of a partitioned table names what it is partitioned by. Ids come from one sequence all the same.
  definitions := array(
    select 'alter table dynamics_sync.outbox add ' || case
      when def ~ '\mtarget\M' then def else regexp_replace(def, '\)', ', target)')
    end
    from pg_constraint k, pg_get_constraintdef(k.oid) as def
    where k.conrelid = outbox and k.contype in ('p', 'u')
  ) || array(
    select replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ')
    from pg_index i
    where i.indrelid = outbox and not exists (select from pg_constraint where conindid = i.indexrelid)
  ) || array(
    select pg_get_triggerdef(t.oid) from pg_trigger t
    where t.tgrelid = outbox and not t.tgisinternal
  ) || array(
    select format('grant %s on dynamics_sync.outbox to %s', a.privilege_type,
      case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
    from pg_class c, aclexplode(c.relacl) as a
    where c.oid = outbox and a.grantee <> c.relowner
  );
  create temporary table outbox_before (like dynamics_sync.outbox including all excluding indexes)
    on commit drop;
  insert into pg_temp.outbox_before select * from dynamics_sync.outbox;
  drop table dynamics_sync.outbox;

  create table dynamics_sync.outbox (like pg_temp.outbox_before including all) partition by list (target);
  foreach part in array targets loop
    execute format('create table dynamics_sync.%I partition of dynamics_sync.outbox for values in (%L) %s',
      'outbox_of_' || part, part, storage);
  end loop;
  execute format('create table dynamics_sync.outbox_rest partition of dynamics_sync.outbox default %s', storage);
  insert into dynamics_sync.outbox select * from pg_temp.outbox_before;
  foreach part in array definitions loop
    execute part;
  end loop;
end
$do$;
