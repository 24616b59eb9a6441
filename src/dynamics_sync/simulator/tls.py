"""A certificate of the simulator's own making."""

import ssl
from pathlib import Path

import trustme


def make_certificate(ca_file: Path) -> ssl.SSLContext:
    """A server context for 127.0.0.1 and localhost; the authority to trust is written to `ca_file` (PEM)."""
    authority = trustme.CA(organization_name="dynamics-sync simulator")
    certificate = authority.issue_cert("127.0.0.1", "localhost", "::1")
    ca_file.parent.mkdir(parents=True, exist_ok=True)
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
