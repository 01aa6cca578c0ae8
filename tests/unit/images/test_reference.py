"""References: what is accepted means what it says, everything else is refused with a remedy."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api import spec
from controller.errors import Rejected
from controller.images.reference import Reference, is_digest, parse

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

ACCEPTED = [
    ("registry:5000/app:1", Reference("registry:5000", "app", "1")),
    ("127.0.0.1:5055/hello:1", Reference("127.0.0.1:5055", "hello", "1")),
    ("registry.example.com/team/app", Reference("registry.example.com", "team/app", "latest")),
    (f"localhost/app@{DIGEST}", Reference("localhost", "app", None, DIGEST)),
    (f"localhost/app:1@{DIGEST}", Reference("localhost", "app", "1", DIGEST)),
    ("[::1]:5000/a/b__c/d-e.f:v1.0_x", Reference("[::1]:5000", "a/b__c/d-e.f", "v1.0_x")),
    ("app", Reference("", "app", "latest")),
    ("team/app:1", Reference("", "team/app", "1")),
]

REFUSED = {
    "": "1 to 512 characters",
    "x" * 513: "1 to 512 characters",
    "registry:5000/a b": "visible ASCII",
    "registry:5000/a\n": "visible ASCII",
    "registry:5000/a\0": "visible ASCII",
    "registry:5000/ä": "visible ASCII",
    "registry:5000/App:1": "lower-case",
    "registry:5000/": "no name in a repository",
    "registry:5000/a//b": "no name in a repository",
    "registry:5000/../x": "no name in a repository",
    "../x": "is no registry",
    ":": "is no tag",
    "app:": "is no tag",
    "registry:5000/app:-bad": "is no tag",
    "registry:5000/app:" + "t" * 129: "is no tag",
    f"a@{DIGEST}@{DIGEST}": "no sha256 digest",
    "registry:5000/app@sha256:abc": "no sha256 digest",
    f"registry:5000/app@sha256:{HEX.upper()}": "no sha256 digest",
    f"registry:5000/app@sha512:{HEX}{HEX}": "no sha256 digest",
    "https://registry.example.com/app": "is no registry",
    "user:secret@registry.example.com/app": "no sha256 digest",
    "registry:0/app": "is no registry",
    "registry:70000/app": "is no port",
    "REGISTRY.example.com/app": "is no registry",
    "[::zz]:5000/app": "is no registry",
    "[1::2::3]/app": "is no IPv6 address",
    "dir:/etc": "no registry",
    "oci-archive:x.tar": "no registry",
    "docker-daemon:app:1": "no registry",
    "registry:5000/" + "a" * 250: "over 255 characters",
}


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_valid_reference_is_taken_apart(text: str, expected: Reference) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_invalid_reference_is_refused_with_field_and_reason(text: str, why: str) -> None:
    with pytest.raises(Rejected, match=r"^spec\.image: ") as refused:
        parse(text)
    assert why in str(refused.value)
    assert refused.value.reason == "InvalidImageReference"
    assert str(refused.value).isprintable()  # one line, nothing that moves a terminal's cursor


@given(st.text(max_size=80))
def test_any_text_is_either_refused_or_survives_a_round_trip(text: str) -> None:
    try:
        reference = parse(text)
    except Rejected:
        return
    assert parse(str(reference)) == reference


label = st.from_regex(r"[a-zA-Z0-9-]{1,5}", fullmatch=True)
part = st.from_regex(r"[a-z0-9._-]{1,6}", fullmatch=True)
likely = st.builds(
    lambda host, port, path, tag, pin: f"{host}{port}{path}{tag}{pin}",
    st.one_of(st.just(""), st.lists(label, min_size=1, max_size=3).map(".".join)),
    st.one_of(st.just("/"), st.integers(0, 70000).map(":{}/".format), st.just("")),
    st.lists(part, min_size=1, max_size=3).map("/".join),
    st.one_of(st.just(""), st.from_regex(r":[\w.-]{0,4}", fullmatch=True)),
    st.sampled_from(["", f"@{DIGEST}", f"@{DIGEST[:-1]}"]),
)


@given(likely)
def test_nothing_is_accepted_here_that_the_schema_refuses(text: str) -> None:
    try:
        parse(text)
    except Rejected:
        return
    pattern = spec._IMAGE.replace("\\\\", "\\")  # there it is written inside a CEL string
    assert re.fullmatch(pattern, text)
    assert not re.match(spec._TRANSPORT, text)


def test_pinning_drops_the_tag() -> None:
    assert str(parse("registry:5000/app:1").at(DIGEST)) == f"registry:5000/app@{DIGEST}"


@pytest.mark.parametrize("text", ["", HEX, f"sha256:../../{HEX[:58]}", f"{DIGEST}\n", "sha256:"])
def test_only_a_whole_digest_may_become_a_file_name(text: str) -> None:
    assert is_digest(DIGEST)
    assert not is_digest(text)
