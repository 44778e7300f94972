"""Source-package repositories are derived from the machine's own apt configuration."""

from e2e.cluster.apt_sources import source_stanzas

DEB822 = """\
# A comment
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://example.org/tools
Suites: nodistro
Components: main
"""


def test_deb822_sources_become_source_repositories() -> None:
    """Debian's stanza is kept with its key; a third party's is left out."""
    assert source_stanzas({"debian.sources": DEB822}) == (
        "Types: deb-src\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_one_line_sources_with_options() -> None:
    """Options in brackets, several components and a trailing comment are understood."""
    line = "deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://mirror/debian bookworm main contrib # ours\n"
    assert source_stanzas({"sources.list": line}) == (
        "Types: deb-src\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main contrib\n"
        "Signed-By: /k.gpg\nTrusted: yes\n"
    )


def test_disabled_commented_and_foreign_entries_are_left_out() -> None:
    """Nothing comes of entries that are switched off or not Debian's main archive."""
    disabled = "Enabled: no\nTypes: deb\nURIs: http://d\nSuites: bookworm\nComponents: main\n"
    lines = "#deb http://d bookworm main\ndeb https://packages.example.org/apt sdk-bookworm main\ndeb http://d ./\n"
    assert source_stanzas({"a.sources": disabled, "sources.list": lines}) == ""


def test_the_same_archive_named_twice_is_taken_once() -> None:
    """`deb` and `deb-src` lines of one archive give one stanza."""
    lines = "deb http://d bookworm main\ndeb-src http://d bookworm main\n"
    assert source_stanzas({"sources.list": lines}).count("URIs: http://d\n") == 1


def test_an_inline_key_is_kept_whole() -> None:
    """A Signed-By block of several lines keeps its indentation."""
    text = "Types: deb\nURIs: http://d\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n"
    assert source_stanzas({"a.sources": text}).endswith("Signed-By: \n -----BEGIN-----\n .\n abc\n")
