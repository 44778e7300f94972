"""HTTP(S): a folder whose files are found by name, or one archive."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.http_client import HttpClient
from kvasir_runtime.fetch.source import Access, RemoteFile, Stream, not_found
from kvasir_runtime.fetch.uri import HttpAddress, without_credentials

ADVICE = "put KVASIR_FETCH_TOKEN into the Secret that source.secretName names"


class HttpSource:
    """Reads one folder, or one archive, of a web server or an artefact repository."""

    def __init__(self, address: HttpAddress, access: Access) -> None:
        self._address = address
        token = access.get("KVASIR_FETCH_TOKEN")
        self._client = HttpClient(access, {"Authorization": f"Bearer {token}"} if token else {}, ADVICE)

    def list_files(self) -> list[RemoteFile]:
        if self._address.is_archive:
            return [self._archive()]
        checksums = names.parse_checksums(self._client.small_text(self._url(names.CHECKSUMS), names.CHECKSUMS) or "")
        wanted = sorted(filter(names.is_wanted, checksums)) or self._usual_names()
        with ThreadPoolExecutor(8) as pool:
            described = list(pool.map(lambda name: self._describe(name, checksums.get(name)), wanted))
        required = {name for name in wanted if name not in names.OPTIONAL} | checksums.keys()
        for name, file in zip(wanted, described, strict=True):
            if file is None and name in required:
                raise not_found(f"{without_credentials(self._url(name))} does not exist (404)")
        return [file for file in described if file is not None]

    def close(self) -> None:
        self._client.close()

    def open(self, file: RemoteFile, offset: int) -> Stream:
        url = self._address.url if self._address.is_archive else self._url(file.name)
        return self._client.open(url, file.version, offset)

    def _archive(self) -> RemoteFile:
        name = urlsplit(self._address.url).path.rpartition("/")[2]
        archive = self._client.describe(self._address.url, name)
        if archive is None:
            raise not_found(f"{without_credentials(self._address.url)} does not exist (404)")
        return archive

    def _usual_names(self) -> list[str]:
        """Without a list: the configuration says what the folder is, the index names the shards."""
        configuration = next((name for name in names.CONFIGURATIONS if self._describe(name)), None)
        if configuration is None:
            raise not_found(
                f"{without_credentials(self._address.url)} holds neither {' nor '.join(names.CONFIGURATIONS)}",
                "the URI must name the folder that holds config.json, or an archive of it",
            )
        index = self._client.small_text(self._url(names.INDEX), names.INDEX) if configuration == "config.json" else None
        weights = [names.INDEX, *shards(index)] if index is not None else [names.SINGLE_WEIGHTS[configuration]]
        return [configuration, *weights, *names.OPTIONAL]

    def _describe(self, name: str, sha256: str | None = None) -> RemoteFile | None:
        return self._client.describe(self._url(name), name, sha256)

    def _url(self, name: str) -> str:
        """The folder's URL with `name` appended before a query, which may be a signature."""
        parts = urlsplit(self._address.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()


def shards(index: str) -> list[str]:
    """The weight files that `model.safetensors.index.json` names, sorted; raises KvasirError (ModelInvalid)."""
    try:
        weight_map: dict[str, Any] = json.loads(index)["weight_map"]
        found = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvasirError(
            Cause.MODEL_INVALID, f"{names.INDEX} cannot be read: {error!r}", "export the model again"
        ) from error
    for name in found:
        if not names.is_wanted(name) or not name.endswith(".safetensors"):
            raise KvasirError(Cause.MODEL_INVALID, f"{names.INDEX} names {name!r}, no safetensors file of its folder")
    return found
