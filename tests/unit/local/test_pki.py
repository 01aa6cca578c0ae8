"""Certificates, judged by a strict verifier; what survives a second start."""

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from controller.local.pki import Pki


def test_serving_certificate_satisfies_a_strict_verifier(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    store = verification.Store([x509.load_pem_x509_certificate(pki.ca_pem)])
    leaf = x509.load_pem_x509_certificate(pki.server_cert.read_bytes())
    for name in (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))):
        verifier = verification.PolicyBuilder().store(store).build_server_verifier(name)
        assert verifier.verify(leaf, [])


def test_serving_authority_vouches_for_no_client(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    user = x509.load_pem_x509_certificate(pki.user("somebody").certificate)
    user.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.client_ca.read_bytes()))
    with pytest.raises(ValueError, match="Issuer certificate subject"):
        user.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca_pem))


def test_user_certificate_names_user_and_groups(tmp_path: Path) -> None:
    credential = Pki(tmp_path).user("somebody", "one", "two")
    subject = x509.load_pem_x509_certificate(credential.certificate).subject
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["somebody"]
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert [a.value for a in groups] == ["one", "two"]


def test_second_start_keeps_authorities_and_renews_leaves(tmp_path: Path) -> None:
    first = Pki(tmp_path)
    kept = [first.ca_pem, first.client_ca.read_bytes(), first.sa_key.read_bytes()]
    leaf = first.server_cert.read_bytes()
    second = Pki(tmp_path)
    assert [second.ca_pem, second.client_ca.read_bytes(), second.sa_key.read_bytes()] == kept
    assert second.server_cert.read_bytes() != leaf


def test_only_the_owner_reads_keys(tmp_path: Path) -> None:
    Pki(tmp_path / "pki")
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "pki").iterdir()} == {0}


def test_leaf_is_valid_now_and_for_months(tmp_path: Path) -> None:
    leaf = x509.load_pem_x509_certificate(Pki(tmp_path).server_cert.read_bytes())
    assert leaf.not_valid_before_utc < datetime.now(UTC)
    assert (leaf.not_valid_after_utc - datetime.now(UTC)).days > 180
