"""Launch files: commands whose every flag is known, and compose and Kubernetes files that hold the same words."""

from __future__ import annotations

import shlex
import string
import subprocess
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing.deployment import Deployment, Speculation
from penjing.errors import UsageError
from penjing.launch import files, known
from penjing.launch.arguments import arguments, known_for, program, variables
from penjing.launch.formats import FORMATS
from test_imports import EFFECTS, PACKAGE, imports

LAUNCH = PACKAGE / "launch"
_PATH = {"PATH": "/bin:/usr/bin"}
ENGINES = {
    "vllm": ("0.32.0", "NVIDIA", "H20"),
    "ascend": ("0.23.0", "Huawei", "Ascend 910B2"),
    "sglang": ("0.5.23", "AMD", "Instinct MI300X"),
    "llama.cpp": ("b11549", "NVIDIA", "RTX 4090"),
}


def deployment(engine: str = "vllm", **changes: Any) -> Deployment:
    version, vendor, device = ENGINES[engine]
    plain = Deployment(
        engine="vllm" if engine == "ascend" else engine,  # type: ignore[arg-type]
        engine_version=version,
        weights="owner/name",
        served_as="Name-8B",
        weight_format="bf16",
        device=device,
        vendor=vendor,
        devices=1,
        tensor_parallel=1,
        most_sequences=16,
        most_batched_tokens=2048,
        context_tokens=8192,
        plugin="vllm-ascend 0.23.0" if engine == "ascend" else "",
    )
    return replace(plain, **changes)


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    """Any deployment that its own checks let pass."""
    engine = draw(st.sampled_from(sorted(ENGINES)))
    degree = st.sampled_from([1, 2, 4, 8])
    tensor, pipeline, data = draw(degree), draw(degree), draw(degree)
    nodes = draw(st.sampled_from([n for n in (1, 2, 4) if pipeline % n == 0 or data % n == 0]))
    if engine == "llama.cpp":
        tensor, data, nodes = 1, 1, 1
    drafted = st.builds(
        Speculation, st.sampled_from(["ngram", "draft"]), st.integers(1, 9), st.just("owner/small")
    )
    text = st.text(string.ascii_letters + string.digits + " '\"$`\\;&|<>-_./é", min_size=1, max_size=30)
    return deployment(
        engine,
        weights="w" + draw(text),
        served_as="n" + draw(text),
        weight_format=draw(st.sampled_from(sorted(FORMATS))),
        quantize_on_load=False,
        devices=tensor * pipeline * data,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data,
        nodes=nodes if (tensor * pipeline * data) % nodes == 0 else 1,
        expert_parallel=draw(st.booleans()),
        kv_cache_type="auto" if engine == "llama.cpp" else draw(st.sampled_from(["auto", "fp8"])),
        most_sequences=draw(st.integers(1, 4096)),
        most_batched_tokens=draw(st.integers(1, 65536)),
        context_tokens=draw(st.integers(1, 2**20)),
        memory_share=draw(st.floats(0.1, 1.0)),
        speculation=draw(st.none() | drafted),
        host=draw(st.sampled_from(["127.0.0.1", "0.0.0.0", "::"])),
        port=draw(st.integers(1, 65535)),
        api_key_env="THE_KEY",
    )


@settings(deadline=None, max_examples=300)
@given(deployments())
def test_every_word_is_known(found):
    """No command has a flag, or a value, that the list of its engine version does not know."""
    for node in range(found.nodes):
        assert "" == known.fault(known_for(found), arguments(found, node))


@settings(deadline=None, max_examples=150)
@given(deployments())
def test_a_command_survives_the_shell(found):
    """Quoted for a shell and split again, the words and what they mean are the same, whatever is in a name."""
    for node in range(found.nodes):
        words = list(arguments(found, node))
        text = files.command_text(found, node)

        again = shlex.split(text.replace(" \\\n", " "))

        assert [*program(found), *words] == again
        assert known.parsed(known_for(found), words) == known.parsed(
            known_for(found), again[len(program(found)) :]
        )


@settings(deadline=None, max_examples=150)
@given(deployments())
def test_files_hold_the_same_words(found):
    """Compose and Kubernetes files parse, and start the engine with the command's own words on every node."""
    for form in ("compose", "kubernetes"):
        inside = files.served(found, form)
        documents = list(yaml.safe_load_all(files.text(found, form, "not at all")))

        started = _compose_words(documents[0]) if form == "compose" else _kubernetes_words(documents)

        assert found.nodes == len(started)
        for node, words in enumerate(started):
            expected = list(arguments(inside, node))
            if form == "kubernetes" and found.nodes > 1:
                expected = [_met(word, documents) for word in expected]
            assert expected == words


def _compose_words(document: dict[str, Any]) -> list[list[str]]:
    """The words of each service as compose hands them on: variables by name, two dollars for one."""
    return [
        [_plain(w, "${THE_KEY:?set it}", "${MASTER_ADDR:?set it}") for w in service["command"]]
        for service in document["services"].values()
    ]


def _kubernetes_words(documents: list[dict[str, Any]]) -> list[list[str]]:
    pods = [one for one in documents if one["kind"] == "Deployment"]
    containers = [pod["spec"]["template"]["spec"]["containers"][0] for pod in pods]
    return [[_plain(word, "$(THE_KEY)", "$(MASTER_ADDR)") for word in one["args"]] for one in containers]


def _plain(word: str, key: str, address: str) -> str:
    for reference, name in ((key, "$THE_KEY"), (address, "$MASTER_ADDR")):
        if word.startswith(reference):
            return name + word.removeprefix(reference)
    return word.replace("$$", "$")


def _met(word: str, documents: list[dict[str, Any]]) -> str:
    """In Kubernetes nodes meet at the name of a Service."""
    (service,) = (d for d in documents if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None")
    return word.replace("$MASTER_ADDR", service["metadata"]["name"])


def test_a_deployment_survives_json():
    """It is a value, and a file."""
    found = deployment(speculation=Speculation("ngram", 4))

    assert found == msgspec.json.decode(msgspec.json.encode(found), type=Deployment)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["m", "--tensor-paralel-size", "2"], "no flag `--tensor-paralel-size`"),
        (["m", "--swap-space", "4"], "no flag"),
        (["m", "--tensor-parallel-size", "two"], "must be a number"),
        (["m", "--tensor-parallel-size", "0"], "at least 1"),
        (["m", "--tensor-parallel-size"], "a value must follow"),
        (["m", "-tp", "2", "--tensor-parallel-size=4"], "twice"),
        (["m", "--kv-cache-dtype", "fp7"], "one of auto, bfloat16"),
        (["m", "--gpu-memory-utilization", "90"], "at most 1"),
        (["m", "--speculative-config", "{method: ngram}"], "JSON"),
        (["m", "-q", "nosuch"], "one of awq"),
        (["m", "n"], "twice"),
        (["m", "--enable-expert-parallel", "--max-num-seqs", "8"], ""),
        (["m", "--no-enable-prefix-caching", "-tp=2"], ""),
    ],
)
def test_the_list_catches_what_the_parser_would(words, problem):
    """Slips in flags, kinds and values are found without the engine."""
    found = known.fault(known.engines()["vllm", "0.32.0"], words)

    assert problem in found if problem else found == ""


def test_lists_differ_by_version():
    """Not all cache types of vLLM 0.32 are known to 0.23, on which Ascend devices run; both have the same flags."""
    words = ["m", "--kv-cache-dtype", "int4_per_token_head"]

    assert "" == known.fault(known.engines()["vllm", "0.32.0"], words)
    assert "one of" in known.fault(known.engines()["vllm", "0.23.0"], words)
    assert known.engines()["vllm", "0.32.0"].flags.keys() == known.engines()["vllm", "0.23.0"].flags.keys()


@pytest.mark.parametrize("engine", known.engines(), ids=" ".join)
def test_images_are_pinned(engine):
    """No image floats: each has a tag of its own version, and none is `latest`."""
    found = known.engines()[engine]
    images = [image for vendor in found.vendors.values() for image in vendor.images.values() if image]

    assert images and all(engine[1] in image.rpartition(":")[2] for image in images)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_open_without_a_key(engine):
    """A container listens to all its network, so that it has a key; the host lets in its own processes alone."""
    for form in ("compose", "kubernetes"):
        inside = files.served(deployment(engine), form)
        text = files.text(deployment(engine), form, "not at all")

        assert ("0.0.0.0", "PENJING_API_KEY") == (inside.host, inside.api_key_env)
        assert "API_KEY" in text and "SECRET" in text.split("\n---")[0]
    assert ["127.0.0.1:8000:8000"] == _service(deployment(engine))["ports"]


def test_an_open_host_without_a_key_is_refused():
    with pytest.raises(UsageError, match=r"`0.0.0.0` is open to others, and there is no API key"):
        deployment(host="0.0.0.0")


def test_parts_that_are_not_the_devices_are_refused():
    """Both numbers are told."""
    with pytest.raises(UsageError, match="2 x 1 x 1 parts are 2, but there are 4 devices"):
        deployment(devices=4, tensor_parallel=2)


@pytest.mark.parametrize(
    ("engine", "resource"),
    [("vllm", "nvidia.com/gpu"), ("sglang", "amd.com/gpu"), ("ascend", "huawei.com/Ascend910")],
)
def test_kubernetes_counts_devices_by_the_vendors_name(engine, resource):
    found = deployment(engine, devices=4, tensor_parallel=4)
    pods, service = yaml.safe_load_all(files.text(found, "kubernetes", "not at all"))
    (container,) = pods["spec"]["template"]["spec"]["containers"]

    assert {resource: "4"} == container["resources"]["limits"]
    assert pods["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert container["ports"][0]["name"] == service["spec"]["ports"][0]["targetPort"]


def test_compose_hands_over_the_devices_of_each_vendor():
    """NVIDIA by reservation, AMD and Ascend by their device files."""
    nvidia = _service(deployment(devices=2, tensor_parallel=2))["deploy"]["resources"]["reservations"][
        "devices"
    ]

    assert [2] == [one["count"] for one in nvidia]
    assert "/dev/kfd" in _service(deployment("sglang"))["devices"]
    assert "/dev/davinci1" in _service(deployment("ascend", devices=2, tensor_parallel=2))["devices"]


def test_local_weights_are_mounted():
    """A file of the host is read-only in the container, and named as it is seen there."""
    service = _service(deployment("llama.cpp", weights="/data/m.gguf", weight_format="gguf"))

    assert "/data:/models:ro" in service["volumes"]
    assert ["--model", "/models/m.gguf"] == service["command"][:2]


def test_metal_has_no_container():
    """Apple's devices are out of reach of containers, and the command is what is left."""
    apple = deployment("llama.cpp", vendor="Apple", device="M4 Max 128GB")

    assert "llama-server" in files.text(apple, "command", "not at all")
    with pytest.raises(UsageError, match="containers cannot reach"):
        files.text(apple, "compose", "not at all")


def test_nodes_meet_at_the_first():
    """Each node has its own command; only the first listens, and all are told where it is."""
    found = deployment(devices=16, tensor_parallel=8, pipeline_parallel=2, nodes=2)
    first, second = (known.parsed(known_for(found), arguments(found, node)) for node in (0, 1))

    assert ("0", "1") == (first["--node-rank"], second["--node-rank"])
    assert "--headless" in second and "--headless" not in first
    assert "--host" in first and "--host" not in second
    assert ("MASTER_ADDR",) == variables(found)


def test_whole_experts_share_replicas_in_sglang():
    """What vLLM calls TP 2 x DP 4 with expert parallel is a TP of 8 with attention in 4 parts there."""
    found = deployment("sglang", devices=8, tensor_parallel=2, data_parallel=4, expert_parallel=True)
    words = known.parsed(known_for(found), arguments(found))

    assert ("8", "4", "8") == (words["--tp-size"], words["--attn-dp-size"], words["--ep-size"])
    assert "--dp-size" not in words


def test_a_shell_script_stops_without_its_variables():
    """It says which variable is missing, before anything is started."""
    found = deployment("sglang", host="0.0.0.0", api_key_env="THE_KEY")
    text = files.text(found, "command", "not at all").replace("python3", "echo")

    without, with_key = (
        subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False, env=_PATH | env)
        for env in ({}, {"THE_KEY": "a b"})
    )

    assert without.returncode != 0 and "THE_KEY" in without.stderr and not without.stdout
    assert with_key.stdout.endswith("--api-key a b\n")


def test_the_header_says_what_it_is():
    """Model, devices, engine version, plan, level and notes, each line a comment."""
    found = deployment(plan="by hand", notes=("one thing\nto know",))
    lines = files.header(found, "compose", "flags known").splitlines()

    assert all(line.startswith("# ") for line in lines)
    for part in (
        "Name-8B in bf16 on 1 x H20",
        "for vLLM 0.32.0",
        "plan: by hand",
        "validated: flags known",
        "one thing to know",
    ):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.py")), ids=lambda path: path.stem)
def test_only_the_check_has_effects(path):
    """All but the questions to an engine is pure: no process, no socket, no clock."""
    assert path.stem in ("check", "asker") or set() == EFFECTS.intersection(imports(path))


def _service(found: Deployment) -> dict[str, Any]:
    document = yaml.safe_load(files.text(found, "compose", "not at all"))
    (service,) = document["services"].values()
    return service
