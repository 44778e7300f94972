"""How the engine gets at the files of adapters, which it reads itself: folders that are mounted, and what is fetched.

| address            | pod                                            | the engine is told          |
|--------------------|------------------------------------------------|-----------------------------|
| pvc://claim/path   | the whole claim, read-only                     | file:///adapters/claim/path |
| file:///root/path  | the allowed root that holds it, read-only      | the same                    |
| s3, hf, https      | nothing but the Secret with its credentials    | the same                    |

Only what a pod must have is part of its revision: another adapter from the same claim, root or scheme makes none.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from kvasir_operator.api.base import ApiModel
from kvasir_operator.api.model import AdapterSpec, Source
from kvasir_operator.resources import names
from kvasir_operator.resources.sources import (
    ClaimSource,
    FileSource,
    RemoteSource,
    allowed_root,
    check_source,
    parse_source,
    secret_volume,
)
from kvasir_operator.settings import Settings

Manifest = dict[str, Any]


class AdapterAccess(ApiModel):
    """What a pod must have for its adapters: claims, folders of the node, schemes that are fetched, and Secrets."""

    claims: list[str] = Field(default=[])
    roots: list[str] = Field(default=[])
    schemes: list[str] = Field(default=[])
    secrets: list[str] = Field(default=[])

    @classmethod
    def of(cls, adapters: Iterable[AdapterSpec], settings: Settings) -> "AdapterAccess | None":
        """What these need together; None without adapters. What the settings refuse needs nothing."""
        sources = [adapter.source for adapter in adapters if not check_source(adapter.source, settings)]
        parsed = [parse_source(source) for source in sources]
        roots = (allowed_root(each, settings) for each in parsed if isinstance(each, FileSource))
        access = cls(
            claims=sorted({each.claim for each in parsed if isinstance(each, ClaimSource)}),
            roots=sorted({root for root in roots if root is not None}),
            schemes=sorted({each.uri.partition("://")[0] for each in parsed if isinstance(each, RemoteSource)}),
            secrets=sorted({source.secret_name for source in sources if source.secret_name is not None}),
        )
        return access if sources else None

    @property
    def folders(self) -> list[str]:
        """Where local adapters lie in the container."""
        return [*(f"{names.ADAPTERS_FOLDER}/{claim}" for claim in self.claims), *self.roots]


def engine_uri(source: Source) -> str:
    """The address under which the engine finds an adapter."""
    parsed = parse_source(source)
    if isinstance(parsed, ClaimSource):
        return f"file://{names.ADAPTERS_FOLDER}/{parsed.claim}/{parsed.path}".rstrip("/")
    return source.uri


def engine_settings(access: AdapterAccess) -> dict[str, Any]:
    """Settings of the engine that let it read the adapters."""
    settings: dict[str, Any] = {"lora_cache": names.ADAPTER_CACHE}
    if access.folders:
        settings["lora_roots"] = access.folders
    if access.schemes:
        settings["lora_schemes"] = access.schemes
    if access.secrets:
        settings["lora_secrets"] = names.ADAPTER_SECRETS_FOLDER
    return settings


def adapter_volumes(access: AdapterAccess, mounted: Iterable[str]) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and their mounts; folders that are `mounted` already are left out.

    A Secret that is missing keeps its adapters from being loaded, and no pod from starting.
    """
    taken = set(mounted)
    sources: list[tuple[str, Manifest]] = [
        *(
            (f"{names.ADAPTERS_FOLDER}/{claim}", {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
            for claim in access.claims
        ),
        *((root, {"hostPath": {"path": root, "type": "Directory"}}) for root in access.roots if root not in taken),
    ]
    volumes = [{"name": f"{names.ADAPTER_VOLUME}-{index}", **volume} for index, (_, volume) in enumerate(sources)]
    mounts = [
        {"name": f"{names.ADAPTER_VOLUME}-{index}", "mountPath": path, "readOnly": True}
        for index, (path, _) in enumerate(sources)
    ]
    for index, secret in enumerate(access.secrets):
        volume = secret_volume(f"{names.ADAPTER_SECRET_VOLUME}-{index}", secret)
        volume["secret"]["optional"] = True
        volumes.append(volume)
        mounts.append(
            {
                "name": volume["name"],
                "mountPath": f"{names.ADAPTER_SECRETS_FOLDER}/{secret}",
                "readOnly": True,
            }
        )
    return volumes, mounts
