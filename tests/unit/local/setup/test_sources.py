"""Reading apt's sources and deriving the entry for backports, as tables of text."""

import pytest

from controller.local.setup import qemu, sources

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/some.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/other.gpg
"""

INLINE_KEY = """\
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abcdef
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.mark.parametrize(
    ("name", "text", "entry"),
    [
        (
            "debian.sources",
            DEB822,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n"
            "Components: main\nSigned-By: /usr/share/keyrings/some.gpg\n",
        ),
        (
            "sources.list",
            "deb http://mirror.example/debian bookworm main\n",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n"
            "Components: main\n",
        ),
        (
            "sources.list",
            "deb [arch=amd64,i386 signed-by=/k.gpg trusted=yes] cdrom:x y z\n"
            "deb [arch=amd64,i386 signed-by=/k.gpg] http://m.example/d bookworm main extra # x\n",
            "Types: deb\nURIs: http://m.example/d\nSuites: bookworm-backports\nComponents: main\n"
            "Architectures: amd64 i386\nSigned-By: /k.gpg\n",
        ),
        (
            "x.sources",
            INLINE_KEY,
            INLINE_KEY.replace("deb deb-src", "deb")
            .replace("Suites: bookworm", "Suites: bookworm-backports")
            .replace("By:", "By: "),
        ),
    ],
    ids=["deb822", "one-line", "one-line with options", "deb822 with an inline key"],
)
def test_the_entry_keeps_address_and_key_of_the_one_apt_trusts(name, text, entry):
    assert sources.backports(sources.parse(name, text), "bookworm") == entry


def test_the_derived_entry_is_read_back_as_backports():
    entry = sources.backports(sources.parse("a.sources", DEB822), "bookworm")
    again = sources.parse("b.sources", entry)
    assert [source.suites for source in again] == [("bookworm-backports",)]
    assert sources.backports(again, "bookworm") == "", "nothing to add a second time"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.list", ""),
        ("a.list", "# deb http://mirror.example/debian bookworm main\n"),
        ("a.list", "deb-src http://mirror.example/debian bookworm main\n"),
        ("a.list", "deb http://mirror.example/debian trixie main\n"),
        ("a.list", "deb http://vendor.example/apt bookworm tools\n"),
        ("a.sources", DEB822.replace("Types", "Enabled: no\nTypes")),
        ("a.sources", DEB822.replace("Types: deb", "Types: deb-src")),
    ],
    ids=["empty", "comment", "source only", "other release", "vendor", "disabled", "deb822 source"],
)
def test_nothing_is_derived_from_what_is_not_the_release_itself(name, text):
    assert sources.backports(sources.parse(name, text), "bookworm") is None


def test_sources_are_read_from_both_places_and_only_from_files_apt_reads(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/d bookworm main\n")
    (tmp_path / "sources.list.d/b.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/c.list.disabled").write_text("deb http://c.example/d bookworm main")
    found = [source.uris for source in qemu.read_sources(tmp_path)]
    assert found == [
        "http://a.example/d",
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    ]


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"),
        ('VERSION_CODENAME="trixie"\n', "trixie"),
        ("ID=arch\n", ""),
    ],
)
def test_the_release_is_read_from_os_release(text, codename):
    assert qemu.release_codename(text) == codename
