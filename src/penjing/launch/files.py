"""Launch files as text: shell, compose or Kubernetes, each with a header that says what it is."""

from __future__ import annotations

import re
import shlex
from typing import Literal

from msgspec.structs import replace

from penjing import __version__
from penjing.deployment import Deployment
from penjing.launch.arguments import arguments, known_for, program, variables
from penjing.launch.compose import compose
from penjing.launch.kubernetes import kubernetes
from penjing.launch.yaml_text import dns_name, yaml_text

Form = Literal["command", "compose", "kubernetes"]

_KEY = "PENJING_API_KEY"


def served(deployment: Deployment, form: Form) -> Deployment:
    """The deployment as it runs in a form: inside a container it listens to the container's network.

    Who is let in from outside is then said by the compose file (the host of `deployment`) or by the Service.
    """
    if form == "command":
        return deployment
    shared = form == "compose" and deployment.nodes > 1  # several share the network of their host
    host = deployment.host if shared else "0.0.0.0"
    return replace(deployment, host=host, api_key_env=deployment.api_key_env or _KEY)


def text(deployment: Deployment, form: Form, validated: str) -> str:
    """The launch file, ready to be written; `validated` says how far it was checked."""
    inside = served(deployment, form)
    if form == "command":
        body = shell(inside)
    elif form == "compose":
        body = yaml_text(compose(inside, published=deployment.host))
    else:
        body = "---\n".join(yaml_text(document) for document in kubernetes(inside))
    return f"{header(inside, form, validated)}{body}"


def header(deployment: Deployment, form: Form, validated: str) -> str:
    """Comment lines: which plan, for which engine version, how far it was checked, what must be set."""
    d = deployment
    parts = [
        f"{d.tensor_parallel} x tensor parallel",
        f"{d.pipeline_parallel} x pipeline parallel" if d.pipeline_parallel > 1 else "",
        f"{d.data_parallel} replicas" if d.data_parallel > 1 else "",
        "experts whole" if d.expert_parallel else "",
        f"on {d.nodes} nodes" if d.nodes > 1 else "",
    ]
    lines = [
        f"{d.served_as} in {d.weight_format} on {d.devices} x {d.device}: {', '.join(filter(None, parts))}",
        f"for {d.most_sequences} at once, {d.context_tokens} tokens each; plan: {d.plan or 'by hand'}",
        f"written by penjing {__version__} for {known_for(d).title}",
        f"validated: {validated}",
        *(f"note: {note}" for note in d.notes),
        *_needs(d, form),
    ]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def shell(deployment: Deployment) -> str:
    """The commands of all nodes as shell text."""
    blocks = []
    for node in range(deployment.nodes):
        title = f"# node {node}\n" if deployment.nodes > 1 else ""
        blocks.append(f"{title}{_guards(deployment)}{command_text(deployment, node)}\n")
    return "\n".join(blocks)


def command_text(deployment: Deployment, node: int = 0) -> str:
    """One command, quoted for a shell, a flag and its value on each line."""
    names = variables(deployment)
    rows: list[str] = []
    for word in arguments(deployment, node):
        quoted = _quoted(word, names)
        if rows and not word.startswith("--"):
            rows[-1] += f" {quoted}"
        else:
            rows.append(quoted)
    first = [shlex.join(program(deployment))]
    if not arguments(deployment, node)[0].startswith("--"):
        first.append(rows.pop(0))
    return " \\\n  ".join([" ".join(first), *rows])


def _quoted(word: str, names: tuple[str, ...]) -> str:
    """A word for the shell, which puts in the value where it is one of our variables."""
    if any(re.match(rf"\${name}(?!\w)", word) for name in names):
        return f'"{word}"'
    return shlex.quote(word)


def _guards(deployment: Deployment) -> str:
    """Lines that stop with a word where a variable is not set, and hand over the API key."""
    own, key = known_for(deployment).api_key_variable, deployment.api_key_env
    lines = [f': "${{{name}:?set it}}"' for name in variables(deployment)]
    if own and key:
        lines.append(f'export {own}="${{{key}:?set it to a secret}}"')
    return "".join(f"{line}\n" for line in lines)


def _needs(deployment: Deployment, form: Form) -> list[str]:
    """What whoever starts it has to do first."""
    needs = []
    if form != "command":
        needs.append("the image's tag follows the naming of its releases, and was not pulled")
    if form == "kubernetes":
        name = dns_name(deployment.served_as)
        needs.append(f"first: kubectl create secret generic {name} --from-literal=api-key=SECRET")
    elif deployment.api_key_env:
        needs.append(f"first: export {deployment.api_key_env}=SECRET")
    if deployment.nodes > 1 and form == "compose":
        needs.append("on each node: MASTER_ADDR=address of node 0, then docker compose --profile nodeN up")
    return needs
