"""Every knob, read once: from the environment (`DYNAMICS_SYNC_…`), else from a TOML file, else the default.

The file is `dynamics-sync.toml` in the working directory, with the same names in lower case and without the prefix.
Nothing else in the project reads the environment.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.operation import DYNAMICS, PORTAL, TARGET_NAME

CONFIG_FILE = "dynamics-sync.toml"

Positive = Annotated[float, Field(gt=0)]


def _environment_name(name: str) -> str:
    if TARGET_NAME.fullmatch(name) is None:
        raise ValueError("a target's name has up to 30 small letters, digits and underscores, a letter first")
    if name == PORTAL:
        raise ValueError("portal is the portal's name; call the Dynamics environment something else")
    return name


class Settings(BaseSettings):
    """What can be set. Secrets don't show in its representation."""

    model_config = SettingsConfigDict(
        env_prefix="DYNAMICS_SYNC_", toml_file=CONFIG_FILE, extra="forbid", frozen=True, env_ignore_empty=True
    )

    database_url: SecretStr | None = None
    """None for the embedded PostgreSQL."""
    target: Annotated[str, AfterValidator(_environment_name)] = DYNAMICS
    """What the database calls the Dynamics environment that these settings name; others may share the database."""
    dynamics_url: str | None = None
    """None, and no credentials, for the simulator."""
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    authority_url: str = "https://login.microsoftonline.com"
    ca_file: Path | None = None
    mapping: Path | None = None
    """None for the certification mapping that ships."""
    portal_url: str | None = None
    """None for no portal."""
    portal_secret: SecretStr | None = None
    """`whsec_…`; while it is being changed two, the new one first."""
    portal_contract: Path | None = None
    """None for the contract that ships."""
    enabled: bool = True
    """`off`: changes are captured and wait, nothing is sent (R26)."""
    failure_threshold: Annotated[int, Field(gt=0)] = 3
    cool_down_seconds: Positive = 60.0
    max_pause_seconds: Positive = 900.0
    """The longest `Retry-After` that is honoured (R11)."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 3
    base_delay_ms: Annotated[int, Field(ge=0)] = 2000
    request_timeout_seconds: Positive = 30.0
    token_pause_seconds: Positive = 30.0
    """How long the identity provider is left alone after it gave no token."""
    poll_seconds: Positive = 1.0
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 48
    bulk_size: Annotated[int, Field(ge=1, le=1000)] = 1000
    """The most records in one request to Dynamics; 1 for one at a time."""
    reconcile_hours: Annotated[float, Field(ge=0)] = 24.0
    """How often a worker compares all tables with Dynamics; 0 for never."""
    reconcile_repair: bool = False
    """Whether what differs is then sent again."""
    webhooks: bool = False
    """Whether Dynamics may tell of changes at `/webhooks/dynamics/v1` (R19)."""
    webhook_secret: SecretStr | None = None
    webhook_previous_secret: SecretStr | None = None
    """Valid as well, while the webhook is registered anew with another one."""
    webhook_header: str = "x-webhook-secret"
    """Where the secret is for the kind HttpHeader."""
    webhook_parameter: str = "secret"
    """Where it is for the kind HttpQueryString; for WebhookKey it is in `code`."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    data_dir: Path = Path(".dynamics-sync")
    """Where the embedded PostgreSQL keeps its data."""
    pg_bindir: Path | None = Field(default=None, validation_alias="PG_BINDIR")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**overrides: object) -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: one is missing or malformed; each is named, no value is quoted.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"  {_told(problem)}" for problem in error.errors(include_input=False)]
        raise ConfigurationError(
            f"The settings cannot be used. Correct the environment or {CONFIG_FILE}:\n" + "\n".join(lines)
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{CONFIG_FILE} is not valid TOML: {error}. Correct it and start again.") from None


def operator_name() -> str:
    """Who is at the keyboard, for the audit trail."""
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"


def _told(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    if problem["type"] == "extra_forbidden":  # only the file is read without asking for a name
        return f"{name} in {CONFIG_FILE}: there is no such setting"
    return (
        f"{name if name.isupper() else f'DYNAMICS_SYNC_{name.upper()}'}: {problem['msg'].removeprefix('Value error, ')}"
    )
