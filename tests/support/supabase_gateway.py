"""A stand-in of Supabase's gateway and of its sign-in, as far as an app needs them to reach PostgREST.

What it does is Supabase's, none of it ours: it knows the project's keys, changes those that are no tokens
(`sb_secret_…`, `sb_publishable_…`) for a short token, and leaves a user's own token as it is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from httpx import AsyncClient as HttpClient
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from support.jwt import token, user_token

PUBLISHABLE, SECRET = "sb_publishable_only-here", "sb_secret_only-here"
USER_PASSWORD = "only-here"
FORWARDED = ("Accept", "Accept-Profile", "Content-Profile", "Content-Type", "Prefer", "Range")


LEGACY_ANON, LEGACY_SERVICE = token("anon"), token("service_role")
"""The keys that projects had before: they are tokens themselves."""
ROLE_OF_KEY = {
    PUBLISHABLE: "anon",
    SECRET: "service_role",
    LEGACY_ANON: "anon",
    LEGACY_SERVICE: "service_role",
}


@dataclass
class Gateway:
    """A project's address, for a while."""

    rest: str
    """PostgREST's."""
    http: aiohttp.ClientSession
    url: str = ""
    users: dict[str, UUID] = field(default_factory=dict)
    """Who may sign in, by e-mail address, with `USER_PASSWORD`."""

    @asynccontextmanager
    async def client(self, key: str, user: str | None = None) -> AsyncIterator[AsyncClient]:
        """An app: Supabase's client with a key, and with a user's token if somebody is signed in."""
        async with HttpClient() as http:
            app = await acreate_client(self.url, key, AsyncClientOptions(httpx_client=http))
            if user is not None:
                app.postgrest.auth(user)
            yield app

    async def offers(self, user: str | None) -> set[str]:
        """The names that PostgREST describes to a role: tables, views, and functions as `rpc/name`."""
        headers = {"apikey": PUBLISHABLE} | ({"Authorization": f"Bearer {user}"} if user else {})
        async with self.http.get(f"{self.url}/rest/v1/", headers=headers) as answer:
            return {path.strip("/") for path in (await answer.json(content_type=None))["paths"]} - {""}

    async def pass_on(self, request: web.Request) -> web.Response:
        key = request.headers.get("apikey", "")
        if key not in ROLE_OF_KEY:
            return web.json_response({"message": "Invalid API key"}, status=401)
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer in ("", key):
            bearer = token(ROLE_OF_KEY[key])
        headers = {name: request.headers[name] for name in FORWARDED if name in request.headers}
        address = f"{self.rest}/{request.match_info['path']}"
        async with self.http.request(
            request.method,
            address,
            params=request.query,
            data=await request.read(),
            headers={**headers, "Authorization": f"Bearer {bearer}"},
        ) as answer:
            kept = {name: answer.headers[name] for name in ("Content-Type", "Content-Range") if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    async def sign_in(self, request: web.Request) -> web.Response:
        given = await request.json()
        user = self.users.get(given["email"])
        if user is None or given["password"] != USER_PASSWORD:
            return web.json_response({"code": 400, "error_code": "invalid_credentials"}, status=400)
        person = {
            "id": str(user),
            "aud": "authenticated",
            "role": "authenticated",
            "app_metadata": {},
            "user_metadata": {},
            "created_at": "2026-01-01T00:00:00Z",
        }
        session = {"token_type": "bearer", "expires_in": 3600, "refresh_token": "none", "user": person}
        return web.json_response({"access_token": user_token(user), **session})


@asynccontextmanager
async def gateway(rest: str) -> AsyncIterator[Gateway]:
    """In front of PostgREST."""
    async with aiohttp.ClientSession() as http:
        running = Gateway(rest, http)
        app = web.Application()
        app.router.add_route("*", "/rest/v1/{path:.*}", running.pass_on)
        app.router.add_post("/auth/v1/token", running.sign_in)
        async with TestServer(app) as server:
            running.url = str(server.make_url("")).rstrip("/")
            yield running
