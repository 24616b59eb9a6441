"""Access tokens from an authority with TLS."""

import asyncio

from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceRequestError
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ClientSecretCredential

from dynamics_sync.core.errors import CredentialsError
from dynamics_sync.dynamics import tokens
from dynamics_sync.dynamics.tokens import REFUSAL_STATUSES, REFUSED, UNREACHABLE, UNTRUSTED, Credentials, Token
from dynamics_sync.sync.ports import Clock


class EntraRequest:
    """Microsoft's own client. A new credential each time: it would give a refused token from its cache again."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock

    async def __call__(self, scope: str) -> Token:
        credentials = self._credentials
        try:
            credential = ClientSecretCredential(
                credentials.tenant_id,
                credentials.client_id,
                credentials.client_secret,
                authority=credentials.authority_url,
                disable_instance_discovery=True,
                transport=AioHttpTransport(connection_verify=credentials.ca_file or True),
                retry_total=0,
            )
            async with credential, asyncio.timeout(tokens.TOKEN_TIMEOUT_SECONDS):
                token = await credential.get_token(scope)
        except ClientAuthenticationError as error:
            refused = error.status_code in REFUSAL_STATUSES
            raise CredentialsError(REFUSED if refused else UNREACHABLE) from None
        except ServiceRequestError as error:
            raise CredentialsError(UNTRUSTED if "certificate" in str(error).lower() else UNREACHABLE) from None
        except (AzureError, ValueError, TimeoutError):
            raise CredentialsError(UNREACHABLE) from None
        return Token(token.token, token.expires_on - self._clock.now().timestamp())
