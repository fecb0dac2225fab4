"""A deployment as a docker compose file: one service, or one for each node under a profile of its own."""

from __future__ import annotations

from typing import Any

from penjing.deployment import Deployment
from penjing.launch.arguments import program
from penjing.launch.containers import (
    AMD_CONTROLS,
    ASCEND_CONTROLS,
    ASCEND_FOLDERS,
    CACHE,
    MODELS,
    image,
    key_variables,
    mounted_folder,
    settings,
    words,
)  # fmt: skip
from penjing.launch.yaml_text import dns_name


def compose(deployment: Deployment, published: str = "127.0.0.1") -> dict[str, Any]:
    """The document. `published` is the address of the host under which the port can be reached."""
    name = dns_name(deployment.served_as)
    if deployment.nodes == 1:
        services = {name: _service(deployment, 0) | {"ports": [_port(deployment, published)]}}
    else:
        services = {
            f"{name}-{node}": {
                "profiles": [f"node{node}"],
                **_service(deployment, node),
                "network_mode": "host",
            }
            for node in range(deployment.nodes)
        }
    return {"services": services, "volumes": {"hub": {}}}


def _service(deployment: Deployment, node: int) -> dict[str, Any]:
    return {
        "image": image(deployment),
        "entrypoint": _program(deployment),
        "command": words(deployment, node, _required, "$$"),
        "environment": _environment(deployment),
        "volumes": _volumes(deployment),
        "ipc": "host",  # processes of one replica share memory
        "restart": "unless-stopped",
        **_devices(deployment),
    }


def _program(deployment: Deployment) -> list[str]:
    """llama.cpp's images keep the server in their own folder."""
    return ["/app/llama-server"] if deployment.engine == "llama.cpp" else list(program(deployment))


def _port(deployment: Deployment, published: str) -> str:
    host = f"[{published}]" if ":" in published else published.replace("localhost", "127.0.0.1")
    return f"{host}:{deployment.port}:{deployment.port}"


def _required(name: str) -> str:
    """A variable of whoever starts it; compose stops where it is not set."""
    return f"${{{name}:?set it}}"


def _environment(deployment: Deployment) -> dict[str, str]:
    keys = {name: _required(deployment.api_key_env) for name in key_variables(deployment)}
    return {**keys, **settings(deployment), "HF_TOKEN": "${HF_TOKEN:-}"}


def _volumes(deployment: Deployment) -> list[str]:
    folder = mounted_folder(deployment)
    local = [f"{folder}:{MODELS}:ro"] if folder else []
    driver = [f"{path}:{path}:ro" for path in ASCEND_FOLDERS] if deployment.vendor == "Huawei" else []
    return [f"hub:{CACHE}", *local, *driver]


def _devices(deployment: Deployment) -> dict[str, Any]:
    """How containers get the devices of each vendor."""
    count = deployment.devices_per_node
    if deployment.vendor == "NVIDIA":
        reserved = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [reserved]}}}}
    if deployment.vendor == "AMD":
        return {
            "devices": list(AMD_CONTROLS),
            "group_add": ["video", "render"],
            "security_opt": ["seccomp=unconfined"],
        }
    if deployment.vendor == "Huawei":
        return {"devices": [*(f"/dev/davinci{i}" for i in range(count)), *ASCEND_CONTROLS]}
    return {"devices": ["/dev/dri"]} if deployment.vendor == "Intel" else {}
