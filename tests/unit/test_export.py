"""The migrations as files: written once, and nothing of anybody's is replaced."""

from pathlib import Path

import pytest

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.postgres.export import export_migrations
from dynamics_sync.postgres.migrate import MACHINERY

MIGRATIONS = MACHINERY.migrations()
FILES = [f"{migration.version}_{migration.name}.sql" for migration in MIGRATIONS]


def test_each_migration_is_a_file_and_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "supabase" / "migrations"
    assert export_migrations(folder, [MACHINERY]).written == FILES
    assert [(folder / name).read_text() for name in FILES] == [migration.sql for migration in MIGRATIONS]
    (folder / FILES[0]).unlink()
    again = export_migrations(folder, [MACHINERY])
    assert (again.written, again.unchanged) == (FILES[:1], FILES[1:])


@pytest.mark.parametrize("name", [FILES[1], f"{MIGRATIONS[1].version}_of_mine.sql"], ids=["name", "version"])
def test_a_file_of_the_same_name_or_version_is_not_replaced_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("-- mine")
    (tmp_path / "20200101000000_of_mine.sql").write_text("-- mine")
    with pytest.raises(ConfigurationError, match=rf"Nothing was written: {name} in "):
        export_migrations(tmp_path, [MACHINERY])
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        name: "-- mine",
        "20200101000000_of_mine.sql": "-- mine",
    }


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be written: Not a directory\. Name another folder"):
        export_migrations(tmp_path / "file" / "migrations", [MACHINERY])
