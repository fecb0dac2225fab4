"""A deployment as Kubernetes documents: a Deployment for each node, a Service, and one more where nodes must meet."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from penjing.deployment import Deployment
from penjing.launch.arguments import program
from penjing.launch.containers import (
    ASCEND_FOLDERS,
    CACHE,
    MODELS,
    image,
    key_variables,
    mounted_folder,
    settings,
    vendor,
    words,
)  # fmt: skip
from penjing.launch.yaml_text import dns_name

Document = dict[str, Any]


def kubernetes(deployment: Deployment) -> list[Document]:
    """The documents. The first node is found under the name of a Service without an address of its own."""
    name = dns_name(deployment.served_as)
    if deployment.nodes == 1:
        return [_pods(deployment, 0, name), _service(deployment, name, name)]
    meeting = f"{name}-nodes"
    placed = replace(deployment, master_address=meeting)
    nodes = [_pods(placed, node, f"{name}-{node}") for node in range(deployment.nodes)]
    headless = _service(deployment, meeting, f"{name}-0")
    headless["spec"] |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return [*nodes, _service(deployment, name, f"{name}-0"), headless]


def _pods(deployment: Deployment, node: int, app: str) -> Document:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": app, "labels": {"app": app}},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # a second pod would wait for the devices of the first
            "selector": {"matchLabels": {"app": app}},
            "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {"containers": [_container(deployment, node)], "volumes": _volumes(deployment)},
            },
        },
    }


def _container(deployment: Deployment, node: int) -> Document:
    resource, count = vendor(deployment).resource, str(deployment.devices_per_node)
    container: Document = {
        "name": "engine",
        "image": image(deployment),
        "command": ["/app/llama-server"] if deployment.engine == "llama.cpp" else list(program(deployment)),
        "args": words(deployment, node, lambda name: f"$({name})", "$$"),
        "env": [
            *(_secret(deployment, name, "api-key") for name in key_variables(deployment)),
            _token(deployment),
        ],
        "volumeMounts": [{"name": m["name"], "mountPath": _place(m)} for m in _volumes(deployment)],
    }
    if deployment.nodes > 1:
        own = {"fieldRef": {"fieldPath": "status.podIP"}}
        container["env"].append({"name": "VLLM_HOST_IP", "valueFrom": own})
    if resource:
        container["resources"] = {"limits": {resource: count}}
    if node == 0:
        container["ports"] = [{"name": "http", "containerPort": deployment.port}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10}
    return container


def _environment(deployment: Deployment) -> list[Document]:
    keys = [_secret(deployment, name, "api-key") for name in key_variables(deployment)]
    plain = [{"name": name, "value": value} for name, value in settings(deployment).items()]
    return [*keys, *plain, _token(deployment)]


def _secret(deployment: Deployment, variable: str, key: str) -> Document:
    secret: Document = {"name": dns_name(deployment.served_as), "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": secret}}


def _token(deployment: Deployment) -> Document:
    """The hub's token, for repositories that ask for one; the secret may do without it."""
    token = _secret(deployment, "HF_TOKEN", "hf-token")
    token["valueFrom"]["secretKeyRef"]["optional"] = True
    return token


def _volumes(deployment: Deployment) -> list[Document]:
    folder = mounted_folder(deployment)
    local = [{"name": "models", "hostPath": {"path": folder}}] if folder else []
    driver = [
        {"name": f"driver-{i}", "hostPath": {"path": path}}
        for i, path in enumerate(ASCEND_FOLDERS if deployment.vendor == "Huawei" else ())
    ]
    shared = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    return [{"name": "hub", "emptyDir": {}}, shared, *local, *driver]


def _place(volume: Document) -> str:
    """Where the container sees a volume; parts of the host's driver stay where they are."""
    places = {"hub": CACHE, "shared-memory": "/dev/shm", "models": MODELS}
    return places.get(volume["name"]) or str(volume["hostPath"]["path"])


def _service(deployment: Deployment, name: str, app: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": app},
            "ports": [{"name": "http", "port": deployment.port, "targetPort": "http"}],
        },
    }
