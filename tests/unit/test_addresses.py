"""A secret goes to https addresses, and over plain http to this machine only, however the address is spelt."""

import pytest

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.dynamics.checks import check_dynamics_url
from dynamics_sync.dynamics.entra import EntraRequest
from dynamics_sync.dynamics.tokens import Credentials, LoopbackRequest, token_request
from support.clock import FakeClock

LOOPBACK = ["http://127.0.0.1", "http://127.8.9.1:80", "http://localhost:8081", "HTTP://LocalHost", "http://[::1]:8081"]
HTTPS = [
    "https://login.microsoftonline.com",
    "HTTPS://Login.Example.COM:8443",
    "https://127.0.0.1",
    "https://[2001:db8::1]",
]
REFUSED = [
    "http://login.microsoftonline.com",
    "http://127.0.0.1.example.com",
    "http://localhost.evil",
    "http://localhost.",
    "http://evil-localhost",
    "http://127.0.0.1@evil.com",
    "http://user@127.0.0.1",
    "http://user:password@localhost",
    "https://login.microsoftonline.com@evil.com",
    "http://evil.com\\@127.0.0.1",
    "http://127.0.0.1\\.evil.com",
    "http://127.0.0.1\t.evil.com",
    "http://127.0.0.1%2eevil.com",
    "http://0.0.0.0",
    "http://[::]",
    "http://127.1",
    "http://2130706433",
    "http://0x7f.0.0.1",
    "http://[::1",
    "http://[::1]evil.com",
    "http://127.0.0.1:80:90",
    "https://login.microsoftonline.com:none",
    "https://login.microsoftonline.com:99999",
    "https://login microsoftonline.com",
    "https://",
    "https:login.microsoftonline.com",
    "//127.0.0.1",
    "login.microsoftonline.com",
    "ftp://127.0.0.1",
    "",
]


def request(authority: str) -> object:
    return token_request(Credentials("tenant", "client", "s3cret", authority), FakeClock())


@pytest.mark.parametrize("url", LOOPBACK)
def test_this_machine_may_be_asked_over_plain_http(url: str) -> None:
    assert isinstance(request(url), LoopbackRequest)
    assert check_dynamics_url(url)


@pytest.mark.parametrize("url", HTTPS)
def test_any_https_address_is_asked_by_microsofts_client(url: str) -> None:
    assert isinstance(request(url), EntraRequest)
    assert check_dynamics_url(url)


@pytest.mark.parametrize("url", REFUSED)
def test_anything_else_is_refused_by_name_without_being_quoted(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match="DYNAMICS_SYNC_AUTHORITY_URL must be an https:// address"
    ) as authority:
        request(url)
    with pytest.raises(ConfigurationError, match="DYNAMICS_SYNC_DYNAMICS_URL must look like") as dynamics:
        check_dynamics_url(url)
    for refusal in (authority, dynamics):
        assert "password" not in str(refusal.value)
        assert "s3cret" not in str(refusal.value)


def test_of_the_dynamics_address_the_path_is_dropped() -> None:
    assert check_dynamics_url("https://org.crm4.dynamics.com/main.aspx?app=1") == "https://org.crm4.dynamics.com"
