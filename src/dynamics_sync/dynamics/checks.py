"""Whether Dynamics can be reached as the settings say, asked once at the start."""

from urllib.parse import urlsplit

from dynamics_sync.core.errors import ConfigurationError, CredentialsError
from dynamics_sync.dynamics.gateway import DataverseGateway
from dynamics_sync.sync.events import emit
from dynamics_sync.transport.addresses import may_carry_secrets
from dynamics_sync.transport.errors import NoAnswerError


def check_dynamics_url(url: str) -> str:
    """The address of the environment, without a path.

    Raises:
        ConfigurationError: it is no https:// address, nor http:// on this machine.
    """
    if may_carry_secrets(url):
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}"
    raise ConfigurationError(
        "DYNAMICS_SYNC_DYNAMICS_URL must look like https://yourorg.crm4.dynamics.com. Plain http:// is taken only for "
        "this machine itself (127.0.0.1, ::1, localhost)."
    )


async def check_dynamics(gateway: DataverseGateway) -> None:
    """Ask Dynamics who we are. A Dynamics that is down is normal and waited for; a wrong setting is not.

    Raises:
        ConfigurationError, CredentialsError: no waiting will help; the message says what to do.
    """
    try:
        answer = await gateway.who_am_i()
    except NoAnswerError as error:
        if error.code == "dns":
            raise ConfigurationError(
                "The host of DYNAMICS_SYNC_DYNAMICS_URL does not exist. Correct the address."
            ) from None
        if error.code == "tls":
            raise ConfigurationError(
                "The certificate of the Dynamics host is not trusted. Name the authority in DYNAMICS_SYNC_CA_FILE, or "
                "correct DYNAMICS_SYNC_DYNAMICS_URL."
            ) from None
        emit("dynamics.unavailable", "warning", error_code=error.code)
        return
    if answer.status in (401, 403):
        raise CredentialsError(
            "Dynamics did not accept the access token. Make the app registration an application user of this "
            "environment, with a security role that may write the mapped tables."
        )
    if answer.status in (200, 408, 429) or answer.status >= 500:
        return
    raise ConfigurationError(
        "What answers at DYNAMICS_SYNC_DYNAMICS_URL is not the Dataverse Web API. Correct the address: it looks like "
        "https://yourorg.crm4.dynamics.com, without a path."
    )
