"""Tokens rotate, certificates change, Pods have their own: what is read, and when again."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import incluster_config

from controller.kube.credentials import TOKEN_REREAD, Credentials, TokenFile


def authority() -> str:
    """A self-signed certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def test_a_token_file_is_read_again_in_time_and_a_gap_keeps_the_last_one(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "token"
    path.write_text("one\n")
    hook, configuration = TokenFile(path, clock=lambda: now[0]), Configuration()
    hook(configuration)
    path.write_text("two\n")
    hook(configuration)
    assert configuration.api_key["BearerToken"] == "Bearer one"
    now[0] += TOKEN_REREAD
    hook(configuration)
    assert configuration.api_key["BearerToken"] == "Bearer two"
    path.write_text("")
    now[0] += TOKEN_REREAD
    hook(configuration)
    path.unlink()
    now[0] += TOKEN_REREAD
    hook(configuration)
    assert configuration.api_key["BearerToken"] == "Bearer two"


async def test_in_a_pod_the_service_account_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-pod\n")
    (tmp_path / "ca.crt").write_text(authority())
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    credentials = Credentials(None)
    await credentials.load()
    assert credentials.api.configuration.host == "https://[fd00::1]:443"
    assert await credentials.authorization() == "Bearer of-the-pod"
    await credentials.close()


async def test_a_new_authority_makes_new_sessions_and_a_new_token_does_not(
    tmp_path: Path,
) -> None:
    path, ca = tmp_path / "kubeconfig", tmp_path / "ca.crt"
    ca.write_text(authority())

    def write(token: str) -> None:
        path.write_text(
            "current-context: c\n"
            "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
            "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1',"
            " certificate-authority: ca.crt}}]\n"
            f"users: [{{name: u, user: {{token: {token}}}}}]\n"
        )

    write("one")
    credentials = Credentials(path)
    await credentials.load()
    first = credentials.api
    assert not await credentials.renew_if_rewritten()
    write("the-other")
    assert await credentials.renew_if_rewritten()
    assert credentials.api is first
    assert await credentials.authorization() == "Bearer the-other"
    ca.write_text(authority())
    await credentials.load()
    assert credentials.api is not first
    await credentials.close()
