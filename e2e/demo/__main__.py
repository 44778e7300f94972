"""From nothing to tokens: a cluster if none is given, the operator, an InferenceService applied, an answer streamed.

Every command that a user could type is shown before it runs. The cluster stays up afterwards; the last lines say
how to go on and how to stop it.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import openai
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from e2e.support import operator, services
from e2e.support.environment import ROOT, Environment, ensure_cluster, ensure_images
from e2e.support.kubectl import Kubectl, Object

SAMPLE = ROOT / "manifests" / "samples" / "cpu-tiny-llama.yaml"
NAME = "tiny-llama"
PROMPT = "What does os.path.join do?"
READY_WITHIN: Final = 180.0

console = Console(highlight=False)
T = TypeVar("T")
Lap = tuple[str, float]


def main() -> int:
    args = _parser().parse_args()
    laps: list[Lap] = []
    started = time.monotonic()

    environment = _timed(laps, "cluster", ensure_cluster)
    _timed(laps, "images", ensure_images)
    kubectl = environment.kubectl
    _timed(laps, "operator", lambda: _install(kubectl))
    demo = kubectl.within("default")
    _timed(laps, "service", lambda: _serve(environment, demo, args.sample))
    _timed(laps, "tokens", lambda: _ask(environment, demo, args.prompt))

    _say("kubectl get isvc")
    print(demo.run("get", "isvc"))
    _show_laps(laps, time.monotonic() - started)
    _show_next(environment)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="what to ask (default: %(default)r)")
    parser.add_argument("--sample", type=Path, default=SAMPLE, help="InferenceService to apply (default: %(default)s)")
    return parser


def _timed(laps: list[Lap], name: str, part: Callable[[], T]) -> T:
    console.rule(f"[bold]{name}", align="left")
    started = time.monotonic()
    result = part()
    laps.append((name, time.monotonic() - started))
    return result


def _install(kubectl: Kubectl) -> None:
    _say(f"kubectl apply -k {operator.OVERLAY.relative_to(ROOT)}")
    there = kubectl.get("namespace", operator.NAMESPACE) is not None
    # Its image may have been built anew under the same tag.
    (operator.reinstall if there else operator.install)(kubectl)
    console.print("the operator is ready")


def _serve(environment: Environment, kubectl: Kubectl, sample: Path) -> None:
    if environment.own:
        services.put_model_on_node()
    _say(f"kubectl apply -f {sample.relative_to(ROOT) if sample.is_relative_to(ROOT) else sample}")
    kubectl.run("apply", "-f", str(sample))
    deadline = time.monotonic() + READY_WITHIN
    shown = Text()
    while True:
        service = kubectl.get("isvc", NAME)
        ready = services.condition(service, "Ready")
        line = _progress_line(service, ready)
        if line != shown:
            console.print(line)
            shown = line
        if ready.get("status") == "True":
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{NAME} is not Ready after {READY_WITHIN:g} s: {ready.get('message', 'no status yet')}")
        time.sleep(0.25)


def _progress_line(service: Object | None, ready: Object) -> Text:
    status = (service or {}).get("status") or {}
    counts = f"{status.get('readyReplicas', 0)}/{status.get('desiredReplicas', '?')} ready"
    mark = "[green]✓[/]" if ready.get("status") == "True" else "[yellow]…[/]"
    return Text.from_markup(f"{mark} {NAME}: {counts}  {escape(ready.get('message', ''))}")


def _ask(environment: Environment, kubectl: Kubectl, prompt: str) -> None:
    """Stream a chat answer through the Service as it arrives, with OpenAI's client."""
    with services.endpoint(environment, kubectl, NAME) as base:
        _say(_as_curl(base, prompt))
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
        stream = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": prompt}], max_tokens=96, temperature=0, stream=True
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


def _as_curl(base: str, prompt: str) -> str:
    """The same request for a shell."""
    message = {"role": "user", "content": prompt}
    body = json.dumps({"model": NAME, "messages": [message], "max_tokens": 96, "temperature": 0, "stream": True})
    return f"curl -N {base}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _show_laps(laps: list[Lap], total: float) -> None:
    table = Table("part", "seconds", title="How long it took")
    table.columns[1].justify = "right"
    for name, seconds in [*laps, ("all", total)]:
        table.add_row(name, f"{seconds:.1f}")
    console.print(table)


def _show_next(environment: Environment) -> None:
    context = f" --context={environment.kubectl.context}" if environment.kubectl.context else ""
    lines = [
        ("reach the cluster", f"export KUBECONFIG={environment.kubectl.kubeconfig}"),
        ("scale it", f"kubectl{context} scale isvc/{NAME} --replicas=2"),
        ("watch it", f"kubectl{context} get isvc,pods --watch"),
        ("read its API", f"kubectl{context} explain isvc.spec"),
        ("delete it", f"kubectl{context} delete isvc {NAME}"),
    ]
    lines += [("stop the cluster", "make cluster-down")] if environment.own else []
    console.rule("[bold]how to go on", align="left")
    for what, how in lines:
        console.print(f"[bold]{what:<18}[/] {escape(how)}", soft_wrap=True)


def _say(command: str) -> None:
    console.print(f"[bold cyan]$[/] {escape(command)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
