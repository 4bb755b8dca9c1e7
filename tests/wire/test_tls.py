"""TLS contexts from files: what serves and what does not, in clear words."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from penstock.errors import BadArgument
from penstock.wire.tls import client_context, server_context
from tests.plane.certificates import certificate


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str | None, str | None]:
    """Shake hands in memory; return the protocol's version at both ends."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = [here, there]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return here.version(), there.version()


def test_a_certificate_and_its_authority_meet(files: tuple[Path, Path]) -> None:
    """A client that was given the authority believes the listener, in TLS 1.3."""
    cert, key = files
    assert shaken(server_context(cert, key), client_context(cert), "127.0.0.1") == ("TLSv1.3", "TLSv1.3")


def test_another_name_is_not_believed(files: tuple[Path, Path]) -> None:
    """A certificate for one address does not serve at another."""
    cert, key = files
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server_context(cert, key), client_context(cert), "10.0.0.1")


def test_another_authority_is_not_believed(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A client believes only the authority that it was given."""
    stranger, _ = certificate(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server_context(*files), client_context(stranger), "127.0.0.1")


@pytest.mark.parametrize("side", ["server", "client"])
def test_versions_before_1_2_are_not_spoken(files: tuple[Path, Path], side: str) -> None:
    """TLS 1.2 is the least that either side takes."""
    context = server_context(*files) if side == "server" else client_context(files[0])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_trusts_nothing_of_the_system(files: tuple[Path, Path]) -> None:
    """The only authority loaded is the file's, and certificates are required."""
    context = client_context(files[0])
    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_what_is_missing_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A certificate, key or authority that is not there, or no key at all, is a BadArgument that says which."""
    cert, key = files
    nowhere = tmp_path / "nowhere.pem"
    with pytest.raises(BadArgument, match=r"the certificate .*nowhere.pem cannot be read: No such file"):
        server_context(nowhere, key)
    with pytest.raises(BadArgument, match=r"the key .*nowhere.pem cannot be read"):
        server_context(cert, nowhere)
    with pytest.raises(BadArgument, match=r"the authority .*nowhere.pem cannot be read"):
        client_context(nowhere)
    with pytest.raises(BadArgument, match="needs its key"):
        server_context(cert, None)


def test_what_does_not_serve_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Garbage, a key of another certificate, and a key under a password are refused without asking anybody."""
    cert, key = files
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nnot base64 !\n")
    _, other_key = certificate(tmp_path)
    locked = tmp_path / "locked.pem"
    locking = ["openssl", "pkey", "-in", str(key), "-out", str(locked), "-aes256", "-passout", "pass:secret"]
    subprocess.run(locking, check=True, capture_output=True, timeout=60)
    for bad_cert, bad_key in ((garbage, key), (cert, garbage), (cert, other_key), (cert, locked)):
        with pytest.raises(BadArgument, match="cannot be used"):
            server_context(bad_cert, bad_key)
    with pytest.raises(BadArgument, match="cannot be used"):
        client_context(garbage)
