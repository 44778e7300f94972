"""Servers in this process that the sources talk to over loopback: plain HTTP, S3's protocol, the hub's protocol."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Site:
    """What a server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    break_after: dict[str, int] = field(default_factory=dict)  # path -> bytes, once
    statuses: dict[str, list[int]] = field(default_factory=dict)  # path -> statuses of the next answers
    token: str | None = None
    heads: bool = True
    validators: bool = True
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def ranges(self, path: str) -> list[str]:
        return [asked for method, seen, asked in self.requests if method == "GET" and seen == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Tests read `Site.requests`."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.site.requests.append((self.command, path, self.headers.get("Range", "")))
        planned = self.site.statuses.get(path)
        if planned:
            self.refuse(planned.pop(0))
        elif not body and not self.site.heads:
            self.refuse(405)
        elif self.site.token and self.headers.get("Authorization") != f"Bearer {self.site.token}":
            self.refuse(401)
        else:
            self.serve(path, body=body)

    def serve(self, path: str, *, body: bool) -> None:
        content = self.site.files.get(path)
        if content is None:
            self.refuse(404)
        else:
            self.send_file(path, content, body=body)

    def send_file(self, path: str, content: bytes, *, body: bool) -> None:
        begin, end, status = self.wanted_range(content)
        if status == 416:
            self.refuse(416)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        if self.site.validators:
            self.send_header("ETag", etag(content))
        self.end_headers()
        if body:
            self.send_body(path, content[begin:end])

    def wanted_range(self, content: bytes) -> tuple[int, int, int]:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or (condition and condition != etag(content)):
            return 0, len(content), 200
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        return (begin, end, 206) if begin < len(content) else (0, 0, 416)

    def send_body(self, path: str, content: bytes) -> None:
        cut = self.site.break_after.pop(path, None)
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.close_connection = True

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()


class S3Handler(Handler):
    """ListObjectsV2, and GetObject with ranges and If-Match, of path-style buckets."""

    def serve(self, path: str, *, body: bool) -> None:
        if "Credential=good/" not in self.headers.get("Authorization", ""):
            self.xml(403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif "list-type" in parse_qs(urlsplit(self.path).query):
            self.list_objects(path.strip("/"))
        elif path in self.site.files and self.headers.get("If-Match") in (None, etag(self.site.files[path])):
            self.send_file(path, self.site.files[path], body=body)
        else:
            self.refuse(412 if path in self.site.files else 404)

    def list_objects(self, bucket: str) -> None:
        known = {path.partition("/")[0] for path in (name.lstrip("/") for name in self.site.files)}
        if bucket not in known:
            self.xml(404, "<Error><Code>NoSuchBucket</Code><Message>no such bucket</Message></Error>")
            return
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        keys = {path.removeprefix(f"/{bucket}/"): content for path, content in self.site.files.items()}
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{etag(content)}</ETag><Size>{len(content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, content in sorted(keys.items())
            if key.startswith(prefix)
        )
        self.xml(
            200, f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )

    def send_file(self, path: str, content: bytes, *, body: bool) -> None:
        self.send_response_only(*((206, "Partial Content") if self.headers.get("Range") else (200, "OK")))
        begin, end, status = self.wanted_range(content)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", etag(content))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.send_body(path, content[begin:end])

    def xml(self, status: int, text: str) -> None:
        content = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class HubHandler(Handler):
    """The two endpoints a fetch needs: a revision's description, and a file of a commit."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def serve(self, path: str, *, body: bool) -> None:
        marker = "/revision/"
        if not path.startswith("/api/models/"):
            super().serve(path.replace(f"/resolve/{self.COMMIT}/", "/"), body=body)
            return
        repository, _, revision = path.removeprefix("/api/models/").partition(marker)
        files = {name: content for name, content in self.site.files.items() if name.startswith(f"/{repository}/")}
        if not files:
            self.describe(404, {"error": "Repository not found"}, "RepoNotFound")
        elif revision not in ("main", "v1"):
            self.describe(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
        else:
            siblings = [self.sibling(name.removeprefix(f"/{repository}/"), content) for name, content in files.items()]
            self.describe(200, {"id": repository, "sha": self.COMMIT, "siblings": siblings}, None)

    def sibling(self, name: str, content: bytes) -> dict[str, object]:
        described: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            described["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return described

    def describe(self, status: int, content: dict[str, object], code: str | None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(text)


def etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'


@contextmanager
def serving(site: Site, handler: type[Handler] = Handler) -> Iterator[Site]:
    """Serve `site` on a free port until the block ends."""
    bound: Callable[..., Handler] = type("Bound", (handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
