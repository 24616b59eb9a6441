"""A piece of network of its own: a process that carries bytes between workers and one server. Killing it cuts all its
connections in the middle of whatever they carry, and leaves the server as it was. At SIGUSR1 it resets them.

    python relay.py TARGET_PORT LISTEN_ADDRESS LISTEN_PORT
"""

import asyncio
import contextlib
import signal
import socket
import struct
import sys

open_connections: set[asyncio.StreamWriter] = set()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def serve(target_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection; what breaks one side breaks the other."""
    sides = [writer]
    try:
        there, back = await asyncio.open_connection("127.0.0.1", target_port)
        sides.append(back)
        open_connections.update(sides)
        await asyncio.gather(carry(reader, back), carry(there, writer))
    except OSError:
        for side in sides:
            reset(side)
    finally:
        open_connections.difference_update(sides)
        for side in sides:
            side.close()


async def main(target_port: int, host: str, port: int) -> None:
    """Serve until killed."""

    def reset_all() -> None:
        for writer in list(open_connections):
            reset(writer)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reset_all)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(target_port, reader, writer)

    server = await asyncio.start_server(connected, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
