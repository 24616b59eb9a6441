"""What docs/supabase.md tells people to write."""

import asyncio
import os
import re
import sys
from pathlib import Path

from dynamics_sync.postgres.connections import Connection
from support.chapters import make_chapter
from support.supabase_gateway import PUBLISHABLE, USER_PASSWORD, Gateway

PAGE = (Path(__file__).parents[2] / "docs" / "supabase.md").read_text()


async def test_the_app_in_python_shows_a_coordinators_certification_and_revokes_it(
    supabase: Gateway, owner: Connection
) -> None:
    (app,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    hers = await make_chapter(owner)
    supabase.users["coordinator@example.org"] = hers.coordinator
    settings = {
        "SUPABASE_URL": supabase.url,
        "SUPABASE_PUBLISHABLE_KEY": PUBLISHABLE,
        "EMAIL": "coordinator@example.org",
        "PASSWORD": USER_PASSWORD,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", app),
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    on_the_listing, hers_alone = output.decode().splitlines()
    assert re.fullmatch(r"[1-9]\d* on the listing", on_the_listing)
    assert hers_alone == "Kari Nordmann active"
    status = "select status from public.certifications where id = %s"
    assert await (await owner.execute(status, [hers.certification])).fetchone() == ("revoked",)
