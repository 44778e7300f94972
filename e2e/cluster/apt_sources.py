"""Derives a private list of source-package repositories from the machine's own apt configuration (pure text work)."""

import re

Stanza = dict[str, str]


def source_stanzas(sources: dict[str, str]) -> str:
    """The deb822 text that gives source packages from the same places as the machine's binary packages.

    Args:
        sources: the machine's files, name to content; `.sources` is deb822, anything else the one-line format.

    Only Debian's own archives are taken (by their suites), so that a third party's list cannot break the update.
    """
    found: list[Stanza] = []
    for name, content in sorted(sources.items()):
        stanzas = _deb822(content) if name.endswith(".sources") else _one_line(content)
        found += [stanza for stanza in stanzas if _is_debian(stanza)]
    unique = dict.fromkeys(_render(stanza) for stanza in found)
    return "\n".join(unique)


def _deb822(content: str) -> list[Stanza]:
    without_comments = "\n".join(line for line in content.splitlines() if not line.startswith("#"))
    stanzas = [_fields(block) for block in re.split(r"\n\s*\n", without_comments) if block.strip()]
    enabled = [s for s in stanzas if s.get("enabled", "yes").lower() not in ("no", "false", "0")]
    return [stanza for stanza in enabled if {"types", "uris", "suites"} <= stanza.keys()]


def _fields(block: str) -> Stanza:
    """Field names in lower case; continuation lines (an inline Signed-By key) keep their line breaks."""
    fields: Stanza = {}
    last = ""
    for line in block.strip("\n").splitlines():
        if line[:1].isspace() and last:
            fields[last] += "\n" + line
        elif ":" in line:
            name, value = line.split(":", 1)
            last = name.strip().lower()
            fields[last] = value.strip()
    return fields


ONE_LINE = re.compile(r"^\s*deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<parts>.*)$")
OPTIONS = {"signed-by": "signed-by", "trusted": "trusted", "check-valid-until": "check-valid-until"}


def _one_line(content: str) -> list[Stanza]:
    matches = [ONE_LINE.match(line.split("#", 1)[0]) for line in content.splitlines()]
    return [_from_match(match) for match in matches if match]


def _from_match(match: re.Match[str]) -> Stanza:
    stanza = {"uris": match["uri"], "suites": match["suite"], "components": match["parts"].strip()}
    for option in (match["options"] or "").split():
        name, _, value = option.partition("=")
        if name.lower() in OPTIONS:
            stanza[OPTIONS[name.lower()]] = value
    return stanza


# Names of Debian's releases that ship the source package, and of the suites they can be known by.
RELEASES = ("bookworm", "stable", "oldstable", "oldoldstable")


def _is_debian(stanza: Stanza) -> bool:
    suites = stanza["suites"].split()
    return any(suite.split("-")[0] in RELEASES for suite in suites) and "main" in stanza.get("components", "").split()


def _render(stanza: Stanza) -> str:
    titles = {"uris": "URIs", "suites": "Suites", "components": "Components", "signed-by": "Signed-By"}
    titles |= {"trusted": "Trusted", "check-valid-until": "Check-Valid-Until"}
    lines = ["Types: deb-src", *(f"{title}: {stanza[key]}" for key, title in titles.items() if key in stanza)]
    return "\n".join(lines) + "\n"
