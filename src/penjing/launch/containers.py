"""What compose files and Kubernetes manifests share: image, folders, devices and variables of one container."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from penjing.deployment import Deployment
from penjing.errors import UsageError
from penjing.launch.arguments import arguments, known_for, variables
from penjing.launch.known import Vendor

CACHE = "/hub"  # where what is fetched is kept, by each engine's own variable
MODELS = "/models"

# what a container of Ascend devices sees of its host's driver
ASCEND_FOLDERS = (
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
)
ASCEND_CONTROLS = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
AMD_CONTROLS = ("/dev/kfd", "/dev/dri")


def vendor(deployment: Deployment) -> Vendor:
    return known_for(deployment).vendors[deployment.vendor]


def image(deployment: Deployment) -> str:
    """The image of the engine for the device.

    Raises:
        UsageError: containers cannot reach this device.
    """
    found = vendor(deployment).image(deployment.device)
    if not found:
        raise UsageError(
            f"containers cannot reach the devices of `{deployment.device}`, so that there is no image for it",
            hint="--as command",
        )
    return found


def mounted_folder(deployment: Deployment) -> str:
    """The folder of the host that holds local weights; empty where they come from a hub."""
    path = PurePosixPath(deployment.weights)
    if not path.is_absolute():
        return ""
    return str(path.parent if path.suffix == ".gguf" else path)


def words(deployment: Deployment, node: int, variable: Callable[[str], str], escape: str) -> list[str]:
    """The arguments in a file where `variable` writes a reference, and `escape` stands for a `$` that is none.

    Local weights are named as the container sees them.
    """
    path = PurePosixPath(deployment.weights)
    seen = f"{MODELS}/{path.name}" if path.suffix == ".gguf" else MODELS
    given = [
        seen if mounted_folder(deployment) and word == deployment.weights else word
        for word in arguments(deployment, node)
    ]
    return [_filled(word, variables(deployment), variable, escape) for word in given]


def key_variables(deployment: Deployment) -> tuple[str, ...]:
    """Names under which the container is given the API key: where the engine looks, or where its flag points."""
    own = known_for(deployment).api_key_variable
    return (own or deployment.api_key_env,) if deployment.api_key_env else ()


def settings(deployment: Deployment) -> dict[str, str]:
    """Variables of the container that are no secret."""
    return {"LLAMA_CACHE" if deployment.engine == "llama.cpp" else "HF_HOME": CACHE}


def _filled(word: str, names: tuple[str, ...], variable: Callable[[str], str], escape: str) -> str:
    for name in names:
        if found := re.match(rf"\${name}(?!\w)", word):
            return variable(name) + word[found.end() :].replace("$", escape)
    return word.replace("$", escape)
