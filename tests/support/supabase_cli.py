"""Supabase's real command line, without Docker: against the address of a database."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from support.npm import supabase_cli

SILENT = {"SUPABASE_TELEMETRY_DISABLED": "1", "SUPABASE_NO_UPDATE_NOTIFIER": "1", "SUPABASE_NO_KEYRING": "1"}
"""It talks to nobody but the database."""


async def supabase(*words: str, database: str, cwd: Path) -> Any:
    """What a command answers, as JSON, in the folder of a project."""
    at = conninfo_to_dict(database)
    address = f"postgresql://{at['user']}:{at['password']}@{at['host']}:{at['port']}/{at['dbname']}"
    process = await asyncio.create_subprocess_exec(
        *(supabase_cli(), *words, f"--remote={address}", "--output-format=json", "--yes", f"--workdir={cwd}"),
        env={**os.environ, **SILENT, "SUPABASE_HOME": str(cwd / ".supabase")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (output + errors).decode()
    return json.loads(output)
