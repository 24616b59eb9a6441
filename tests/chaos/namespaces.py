"""Network namespaces, each tied to this machine by one virtual cable that can be cut with nftables."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

NETWORK = "198.18.{number}.{host}"
"""A range for tests of networks (RFC 2544), so that nobody's own is hidden."""


def why_not() -> str | None:
    """Why this machine gives us no namespaces; None if it does."""
    if os.geteuid() != 0:
        return "network namespaces are root's"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install iproute2 nftables"
    try:
        with namespaces(1) as (namespace,), namespace.cut([9], answers_only=False):
            return None
    except subprocess.CalledProcessError as error:
        return f"this machine gives no network namespaces: {error.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network of its own; `here` is this machine's address in it."""

    name: str
    here: str

    def inside(self, *command: str) -> tuple[str, ...]:
        """The command, run in it."""
        return ("ip", "netns", "exec", self.name, *command)

    @contextmanager
    def cut(self, ports: Sequence[int], *, answers_only: bool) -> Iterator[None]:
        """Let no packet through to these ports of this machine, or none from them."""
        listed = ", ".join(map(str, ports))
        chains = [f"chain answers {{ type filter hook input priority 0; tcp sport {{ {listed} }} drop; }}"]
        if not answers_only:
            chains.append(f"chain requests {{ type filter hook output priority 0; tcp dport {{ {listed} }} drop; }}")
        _run(*self.inside("nft", "-f", "-"), given=f"table inet chaos {{\n{chr(10).join(chains)}\n}}")
        try:
            yield
        finally:
            _run(*self.inside("nft", "delete", "table", "inet", "chaos"))

    def has_unsent(self) -> bool:
        """Whether packets of connections that their program has closed, or died with, may still go out."""
        states = ("fin-wait-1", "closing", "last-ack")
        words = [word for state in states for word in ("state", state)]
        return bool(_run(*self.inside("ss", "-Htn", *words)).strip())


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many of them, until the end."""
    with ExitStack() as stack:
        here = stack.enter_context(_address())
        yield [stack.enter_context(_namespace(number, here)) for number in range(1, count + 1)]


@contextmanager
def _address() -> Iterator[str]:
    """This machine's, the same for all: a Dynamics with another address would be another one."""
    here = NETWORK.format(number=os.getpid() % 250, host=1)
    _run("ip", "address", "add", f"{here}/32", "dev", "lo")
    try:
        yield here
    finally:
        _run("ip", "address", "delete", f"{here}/32", "dev", "lo")


@contextmanager
def _namespace(number: int, here: str) -> Iterator[Namespace]:
    name = f"chaos-{os.getpid()}-{number}"
    cable = f"ch{os.getpid()}-{number}"
    third = (os.getpid() + number) % 250
    near, there = (NETWORK.format(number=third, host=host) for host in (1, 2))
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", name)
        _run("ip", "address", "add", f"{near}/30", "dev", cable)
        _run("ip", "link", "set", cable, "up")
        _run("ip", "-n", name, "address", "add", f"{there}/30", "dev", "cable")
        _run("ip", "-n", name, "link", "set", "cable", "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "route", "add", here, "via", near)
        yield Namespace(name, here)
    finally:
        # The cable goes with it, once no process is left that still holds it.
        subprocess.run(["ip", "link", "delete", cable], check=False, capture_output=True)
        _run("ip", "netns", "delete", name)


def _run(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, input=given).stdout
