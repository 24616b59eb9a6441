"""The HTTP server beside the worker."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from dynamics_sync.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fastapi import FastAPI


class Server(uvicorn.Server):
    """Stopped by whoever started it: signals are the command's to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: "FastAPI") -> Server:
    """A server, not yet running."""
    return Server(uvicorn.Config(app, log_config=None, access_log=False, http="h11"))


def listening_socket(host: str, port: int) -> socket.socket:
    """Where the server is found.

    Raises:
        ConfigurationError: the port is taken, or not ours to take.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"The health pages cannot be served on port {port} of {host}: {error.strerror}. Set DYNAMICS_SYNC_PORT to "
            "another port, or run with --no-web."
        ) from None
