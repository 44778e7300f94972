"""Where the API server is, and who we are: from KUBECONFIG, the pod's service account, or ~/.kube/config."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from kvasir_operator.errors import ApiError


async def load_configuration(environ: Mapping[str, str], home: Path) -> Configuration:
    """The first of the three that is there; raises ApiError that says where was looked."""
    configuration = Configuration()
    in_pod = "KUBERNETES_SERVICE_HOST" in environ
    file = environ.get("KUBECONFIG") or ("" if in_pod else str(home / ".kube" / "config"))
    try:
        if file:
            await config.load_kube_config(config_file=file, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        where = f"kubeconfig {file}" if file else "the pod's service account"
        raise ApiError(0, "NoCredentials", f"no access to a cluster from {where}: {error}") from error
    configuration.proxy = proxy_of(configuration.host, environ)
    # Found once, above: with trust_env the client looks for proxies and a .netrc at every request, in a thread.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def proxy_of(server: str, environ: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for the API server; None to go there directly."""
    address = urlsplit(server)
    proxies = {key.lower().removesuffix("_proxy"): value for key, value in environ.items() if value}
    if not address.hostname or proxy_bypass_environment(address.netloc, {"no": proxies.get("no", "")}):
        return None
    return proxies.get(address.scheme)


def default_home() -> Path:
    """The user's home; the root folder for an account without one."""
    return Path(os.environ.get("HOME") or "/")
