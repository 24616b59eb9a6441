"""The migrations as files for the folder of Supabase's own tool, `supabase/migrations`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.postgres.migrate import MigrationSet


@dataclass(frozen=True, slots=True)
class Exported:
    """Names of files, oldest first."""

    written: Sequence[str]
    unchanged: Sequence[str]
    """Those that were there already, as they are."""


def export_migrations(directory: Path, sets: Sequence[MigrationSet]) -> Exported:
    """Write one file for each migration, `<version>_<name>.sql`; the folder is made if it is missing.

    All or nothing: what differs is somebody's, or of another version of this program.

    Raises:
        ConfigurationError: a file is there that differs or has the same version, or the folder cannot be written.
    """
    files = {
        f"{migration.version}_{migration.name}.sql": migration.sql.encode()
        for each in sets
        for migration in each.migrations()
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        present = {file.name: file for file in directory.iterdir() if file.suffix == ".sql"}
        unchanged = [name for name in files if name in present and present[name].read_bytes() == files[name]]
        if in_the_way := _in_the_way(sorted(present.keys() - unchanged), files):
            raise ConfigurationError(
                f"Nothing was written: {', '.join(in_the_way)} in {directory} would be replaced. An applied migration "
                "is never changed: move the file away if it is not wanted, and export again."
            )
        written = [name for name in files if name not in unchanged]
        for name in written:
            (directory / name).write_bytes(files[name])
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written: {error.strerror}. Name another folder.") from None
    return Exported(sorted(written), sorted(unchanged))


def _in_the_way(present: Sequence[str], files: dict[str, bytes]) -> list[str]:
    """Files of a version that we bring: Supabase's tool knows a migration by its version alone."""
    versions = {name.partition("_")[0] for name in files}
    return [name for name in present if name.partition("_")[0] in versions]
