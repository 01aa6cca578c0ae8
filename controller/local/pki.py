"""Keys and certificates of a local control plane, all under one directory, keys 0600.

Two authorities, because a serving certificate must never pass as a client's. The authorities and
the service-account key stay for the life of the directory (tokens and copied kubeconfigs stay
valid); leaf certificates are issued anew at each start. All of it satisfies strict X.509 checks
(Python 3.13 and later: key usage, subject and authority key identifiers, names in the SAN).
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.host.files import write_atomic

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
SERVING_NAMES = ("localhost", "kubernetes.default.svc", "kubernetes.default", "kubernetes")


@dataclass(frozen=True)
class Credential:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """One that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate that a verifier needs."""
        return self.certificate.public_bytes(Encoding.PEM)


class Pki:
    """The files of one directory; created where missing, read back where they exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._serving = _authority(directory, "serving-ca")
        self._client = _authority(directory, "client-ca")
        self.serving_ca = directory / "serving-ca.crt"
        self.client_ca = directory / "client-ca.crt"
        self.sa_key, self.sa_pub = _service_account_key(directory)
        self.server_cert, self.server_key = self._serve()

    @property
    def ca_pem(self) -> bytes:
        """What a client needs to trust the API server."""
        return self._serving.pem

    def user(self, name: str, *groups: str) -> Credential:
        """A client certificate: ``name`` is the Kubernetes user, ``groups`` its groups."""
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
        return _issue(self._client, x509.Name(subject), ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _serve(self) -> tuple[Path, Path]:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVING_NAMES]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        issued = _issue(self._serving, subject, ExtendedKeyUsageOID.SERVER_AUTH, names)
        certificate, key = self.directory / "apiserver.crt", self.directory / "apiserver.key"
        write_atomic(key, issued.key)
        write_atomic(certificate, issued.certificate)
        return certificate, key


def _authority(directory: Path, name: str) -> Authority:
    certificate_path, key_path = directory / f"{name}.crt", directory / f"{name}.key"
    # the key is written first: a certificate on disk proves that its key is there too
    if certificate_path.exists():
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        return Authority(certificate, _load(key_path))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"torpor local {name}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _dated(AUTHORITY_DAYS)
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    write_atomic(key_path, _key_pem(key))
    write_atomic(certificate_path, certificate.public_bytes(Encoding.PEM))
    return Authority(certificate, key)


def _issue(
    issuer: Authority,
    subject: x509.Name,
    purpose: x509.ObjectIdentifier,
    names: list[x509.GeneralName],
) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signer = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _dated(LEAF_DAYS)
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(issuer.key, hashes.SHA256())
    return Credential(certificate.public_bytes(Encoding.PEM), _key_pem(key))


def _dated(days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # a clock stepped back is no outage
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _service_account_key(directory: Path) -> tuple[Path, Path]:
    private, public = directory / "sa.key", directory / "sa.pub"
    if not private.exists():
        write_atomic(private, _key_pem(ec.generate_private_key(ec.SECP256R1())))
    pem = _load(private).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(public, pem)
    return private, public


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # we wrote it
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
