"""kubectl as a typed program: the same client that users have."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

Object = dict[str, Any]


class Reads(Protocol):
    """Answers what `kubectl get` would."""

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None: ...

    def list(self, kind: str, namespace: str | None, selector: str = "") -> list[Object]: ...


class KubectlError(RuntimeError):
    """kubectl ended with an error; the text is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one cluster, in one namespace if `namespace` is given; `reader` reads in its place."""

    kubeconfig: Path
    context: str | None = None
    namespace: str | None = None
    reader: Reads | None = None

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def reading_by(self, reader: Reads) -> "Kubectl":
        return replace(self, reader=reader)

    def command(self, *args: str) -> list[str]:
        scope = [f"--context={self.context}"] if self.context else []
        scope += [f"--namespace={self.namespace}"] if self.namespace else []
        return ["kubectl", f"--kubeconfig={self.kubeconfig}", *scope, *args]

    def run(self, *args: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Return what kubectl printed; KubectlError carries what it complained about."""
        done = subprocess.run(
            self.command(*args), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, *objects: Object) -> str:
        return self.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, kind: str, name: str) -> Object | None:
        """The object, or None where there is none."""
        if self.reader:
            return self.reader.get(kind, self.namespace, name)
        found = self.run("get", kind, name, "--ignore-not-found", "-o", "json")
        return dict(json.loads(found)) if found.strip() else None

    def list(self, kind: str, selector: str = "") -> list[Object]:
        if self.reader:
            return self.reader.list(kind, self.namespace, selector)
        args = ["get", kind, "-o", "json"] + (["-l", selector] if selector else [])
        return list(json.loads(self.run(*args))["items"])

    @contextmanager
    def background(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Run kubectl beside the caller, and end it when the block ends."""
        process = subprocess.Popen(
            self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=10)
            if process.stdout:
                process.stdout.close()
