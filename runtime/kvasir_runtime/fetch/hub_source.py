"""The Hugging Face hub, or a mirror that speaks its protocol.

`huggingface_hub` resolves the revision to a commit and lists its files; everything is then read from that commit.
Files kept in large-file storage are verified against the SHA-256 that the hub lists for them.
"""

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.http_client import HttpClient
from kvasir_runtime.fetch.source import Access, RemoteFile, Stream, TransientError, forbidden, not_found
from kvasir_runtime.fetch.uri import HubAddress

ADVICE = (
    "accept the model's terms on the hub if it is gated, and put HF_TOKEN into the Secret that source.secretName names"
)


class HubSource:
    """The files of one revision."""

    def __init__(self, address: HubAddress, access: Access) -> None:
        self._address, self._timeout = address, access.timeout
        self._endpoint = (access.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        token = access.get("HF_TOKEN") or False  # False: never the token of whoever runs this by hand
        self._api = HfApi(endpoint=self._endpoint, token=token, library_name="kvasir")
        self._client = HttpClient(access, {"Authorization": f"Bearer {token}"} if token else {}, ADVICE)

    def list_files(self) -> list[RemoteFile]:
        where = f"{self._endpoint}/{self._address.repository}@{self._address.revision}"
        try:
            info = self._api.model_info(
                self._address.repository, revision=self._address.revision, timeout=self._timeout, files_metadata=True
            )
        except GatedRepoError as error:
            raise forbidden(f"{where} is gated", ADVICE) from error
        except RevisionNotFoundError as error:
            raise not_found(
                f"{where}: there is no such revision", "name a branch, tag or commit after the @"
            ) from error
        except RepositoryNotFoundError as error:  # the hub answers alike for private and for missing repositories
            raise not_found(f"{where} does not exist, or is private", f"check the name. {ADVICE}") from error
        except HfHubHTTPError as error:
            raise self._failure(error, where) from error
        except httpx2.TransportError as error:
            raise TransientError(f"{where}: {error}") from error
        files = [(sibling.rfilename, sibling) for sibling in info.siblings or [] if names.is_wanted(sibling.rfilename)]
        return [RemoteFile(name, file.size, file.lfs.sha256 if file.lfs else None, info.sha) for name, file in files]

    def close(self) -> None:
        self._client.close()

    def open(self, file: RemoteFile, offset: int) -> Stream:
        url = hf_hub_url(self._address.repository, file.name, revision=file.version, endpoint=self._endpoint)
        return self._client.open(url, None, offset)  # a commit's file never changes

    def _failure(self, error: HfHubHTTPError, where: str) -> Exception:
        status = error.response.status_code
        if status in (401, 403):
            return forbidden(f"{where} refuses access ({status})", ADVICE)
        return TransientError(f"{where} answers {status}")
