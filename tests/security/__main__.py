"""`PYTHONPATH=tests python -m security` attacks a database of its own and prints the matrix. SERVER (pg15, pg17, pg18)
chooses the version."""

import os
import sys

import psycopg

from security.matrix import run
from security.report import lines
from security.world import populate
from support.postgres import binaries, cluster


def main() -> int:
    """Exit status 1 if anything is not as it is meant."""
    with cluster(binaries(os.environ.get("SERVER") or "pg18")) as server, server.database() as url:
        with psycopg.connect(url) as owner:
            populate(owner)
            result = run(owner)
    sys.stdout.writelines(f"{line}\n" for line in lines(result))
    return 1 if result.deviations else 0


if __name__ == "__main__":
    sys.exit(main())
