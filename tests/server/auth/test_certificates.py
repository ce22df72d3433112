"""The files of a certificate: which the server uses, and what it says about the others."""

from pathlib import Path

import pytest

from server.auth.certificates import watch_certificates
from server.host.watched_files import BadFile
from tests.certificates import Authority

ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIC\n-----END ENCRYPTED PRIVATE KEY-----\n"
OLD_ENCRYPTED = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIC\n"
BROKEN_CERT = b"-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n"
BROKEN_KEY = b"-----BEGIN PRIVATE KEY-----\nMIIC\n-----END PRIVATE KEY-----\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def other(authority):
    return authority.sign("other")


@pytest.fixture
def issued(authority):
    return authority.sign("server")


def watch(issued, client_ca=None):
    return watch_certificates(issued.certificate, issued.key, client_ca)


def test_good_files_are_used(issued, authority):
    certificates = watch(issued, authority.certificate).value
    assert certificates.chain == issued.certificate.read_bytes()
    assert certificates.key == issued.key.read_bytes()
    assert certificates.client_ca == authority.certificate.read_bytes()
    assert watch(issued).value.client_ca is None


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        (b"", None, "--tls-cert {cert}: found no certificate, expected one in PEM"),
        (None, b"", "--tls-key {key}: found no private key, expected one in PEM"),
        (None, ENCRYPTED, "--tls-key {key}: found an encrypted key, expected one without a password"),
        (None, OLD_ENCRYPTED, "--tls-key {key}: found an encrypted key, expected one without a password"),
        (BROKEN_CERT, None, "--tls-cert {cert} and --tls-key {key}: cannot be used"),
        (None, BROKEN_KEY, "--tls-cert {cert} and --tls-key {key}: cannot be used"),
        (None, "other", "--tls-key {key}: found another key than that of --tls-cert {cert}"),
    ],
)
def test_bad_files_are_named(issued, other, cert, key, said):
    if cert is not None:
        issued.certificate.write_bytes(cert)
    if key is not None:
        issued.key.write_bytes(other.key.read_bytes() if key == "other" else key)
    with pytest.raises(BadFile) as error:
        watch(issued)
    assert str(error.value).startswith(said.format(cert=issued.certificate, key=issued.key))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("contents", "said"), [(b"nothing", "found no certificate"), (BROKEN_CERT, "cannot be used")])
def test_bad_authorities_are_named(issued, tmp_path, contents, said):
    file = tmp_path / "ca.pem"
    file.write_bytes(contents)
    with pytest.raises(BadFile, match=f"--tls-client-ca {file}: {said}"):
        watch(issued, file)


def test_a_replacement_with_a_key_that_does_not_match_is_not_used(issued, other, caplog):
    watched = watch(issued)
    before = watched.value
    issued.certificate.write_bytes(other.certificate.read_bytes())
    assert [watched.refresh() for _ in range(3)] == [False] * 3
    assert watched.value is before
    assert "found another key than that of --tls-cert" in caplog.text
    issued.key.write_bytes(other.key.read_bytes())
    assert [watched.refresh(), watched.refresh()] == [False, True]
    assert watched.value.chain == other.certificate.read_bytes()


def test_a_pair_that_is_replaced_while_it_is_read_is_not_used(issued, other, monkeypatch):
    """gRPC would get the first pair, and HTTP the second."""
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(other.key if file == issued.key else file))
    with pytest.raises(BadFile, match="--tls-key .*: changed while it was read"):
        watch_certificates(issued.certificate, issued.key, None)
