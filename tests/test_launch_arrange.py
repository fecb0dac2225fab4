"""How a model is laid over devices: the fewest that hold it, and every refusal with a way out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing import catalogue
from penjing.deployment import Deployment
from penjing.errors import DoesNotFit, UnknownName, UsageError
from penjing.launch.arrange import arranged, fewest_devices
from penjing.launch.asked import Asked
from penjing.launch.formats import FORMATS, cache_bytes, published, weights_bytes
from penjing.launch.parts import kv_heads, splits
from penjing.model import Layer
from penjing.units import GIB
from penjing.workload import Workload

WORK = Workload(users=16, context_tokens=8192)
MODELS = (
    "Qwen3-8B",
    "Qwen3-235B-A22B",
    "DeepSeek-V3",
    "gpt-oss-120b",
    "Qwen2.5-0.5B",
    "GLM-4.6",
    "Gemma-3-27B",
)


def arrange(name: str, machine: str, count: int = 1, work: Workload = WORK, **asked: object) -> Deployment:
    model = catalogue.model(name)
    given_ = Asked(**{"weights": "owner/name", "published": published(model), "count": count} | asked)  # type: ignore[arg-type]
    return arranged(model, catalogue.machine(machine), work, given_)


def layout(found: Deployment) -> tuple[int, int, int, int]:
    return found.tensor_parallel, found.pipeline_parallel, found.data_parallel, found.nodes


@pytest.mark.parametrize(
    ("name", "machine", "count", "expected"),
    [
        ("Qwen3-8B", "RTX 4090", 1, (1, 1, 1, 1)),  # 15 of 21.6 GiB
        ("Qwen3-8B", "RTX 4090", 8, (1, 1, 8, 1)),  # the rest become replicas
        ("Qwen3-235B-A22B", "H20", 8, (8, 1, 1, 1)),  # 4 KV heads, each kept twice
        ("Qwen3-235B-A22B", "H200", 8, (4, 1, 2, 1)),
        ("GLM-4.6", "A100 SXM 80GB", 16, (8, 2, 1, 2)),  # stages over nodes
        ("DeepSeek-V3", "H200", 8, (8, 1, 1, 1)),
        ("Qwen3-32B", "Ascend 910B2", 4, (2, 1, 2, 1)),
    ],
)
def test_the_fewest_devices_are_taken(name, machine, count, expected):
    """The smallest tensor parallel degree on one node, then stages over nodes; what is left are replicas."""
    assert expected == layout(arrange(name, machine, count))


def test_what_is_asked_for_is_kept():
    """Degrees, format, cache, address and the name of the key stand in the deployment as they were given."""
    found = arrange(
        "Qwen3-32B", "H20", 16, tensor_parallel=2, pipeline_parallel=2, data_parallel=2, weight_format="fp8",
        kv_cache_type="fp8", host="0.0.0.0", api_key_env="KEY", port=9,
    )  # fmt: skip

    assert (2, 2, 2, 1) == layout(found)
    assert ("fp8", True, "fp8", "0.0.0.0", "KEY", 9) == (
        found.weight_format, found.quantize_on_load, found.kv_cache_type, found.host, found.api_key_env, found.port,
    )  # fmt: skip
    assert "8 of 16 devices stay idle" in found.notes


def test_a_package_of_two_dies_is_two_devices():
    """An Ascend 910C shows itself as two devices of 64 GB."""
    found = arrange("Qwen3-32B", "Ascend 910C", 2)

    assert (4, 2, 2) == (found.devices, found.tensor_parallel, found.data_parallel)
    assert "vllm-ascend" in found.plugin


def test_experts_stay_whole_where_their_blocks_would_be_cut():
    """Experts of 1536 over 8 devices are 192 wide, no multiple of the 128 that share a scale."""
    sliced = arrange("MiniMax-M2", "H20", 8, tensor_parallel=4)
    whole = arrange("MiniMax-M2", "H20", 8, tensor_parallel=8)

    assert not sliced.expert_parallel and whole.expert_parallel
    assert any("experts stay whole" in note for note in whole.notes)


def test_whole_experts_are_spread_over_replicas():
    """With experts over all devices, each replica holds a part of them only: two replicas of TP 2 fit 4 devices."""
    with pytest.raises(DoesNotFit):
        arrange("Hunyuan-A13B", "A100 SXM 80GB", 4, tensor_parallel=2, data_parallel=2)

    assert (2, 1, 2, 1) == layout(
        arrange("Hunyuan-A13B", "A100 SXM 80GB", 4, tensor_parallel=2, data_parallel=2, expert_parallel=True)
    )


def test_replicas_on_several_nodes():
    """As many on each; engines that cannot are refused."""
    assert (1, 1, 16, 2) == layout(arrange("Qwen3-8B", "H20", 16, data_parallel=16))
    with pytest.raises(UsageError, match="sglang") as caught:
        arrange("Qwen3-8B", "H20", 16, data_parallel=16, engine="sglang")
    assert caught.value.hint.startswith("--dp 8")


def test_llama_cpp_deals_out_layers():
    """GGUF files go to llama.cpp, over as few devices of one computer as hold them."""
    found = arrange("Qwen3-32B", "RTX 4090", 4, published="gguf", weights="m.gguf")  # 16 of 64 layers each
    alone = arrange("Qwen3-8B", "M4 Max 128GB", published="gguf", weights="m.gguf")

    assert ("llama.cpp", 1, 4) == (found.engine, found.tensor_parallel, found.pipeline_parallel)
    assert ("llama.cpp", 1) == (alone.engine, alone.devices)


def test_memory_of_a_dense_model_by_hand():
    """Qwen3-8B: 8.19e9 weights of 16 bits, 36 layers that cache 2 x 8 x 128 elements of 16 bits a token."""
    model = catalogue.model("Qwen3-8B")

    assert pytest.approx(2 * 8.19e9, rel=1e-3) == sum(weights_bytes(model, "bf16"))
    assert 36 * 2 * 8 * 128 * 2 * 1000 == cache_bytes(model, 1000)
    assert weights_bytes(model, "fp8")[0] < 0.6 * weights_bytes(model, "bf16")[0]


def test_heads_are_told_from_widths():
    """32 heads over outputs of 4096: keys of 1024 are 8 heads; a latent is one for all."""
    assert 8 == kv_heads(Layer("full", heads=32, key_width=1024, value_width=1024), 4096)
    assert 1 == kv_heads(Layer("latent", heads=128, key_width=576), 16384)


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("Qwen3-8B", 3, "32 heads"), ("Qwen3-235B-A22B", 8, ""), ("Qwen2.5-0.5B", 4, "14 heads"),
        ("DeepSeek-V3", 16, ""), ("Qwen3-8B", 32, ""), ("gpt-oss-120b", 64, ""), ("Qwen3-14B", 16, "40 heads"),
    ],
)  # fmt: skip
def test_what_can_be_split(name, tensor, why):
    """Heads and networks must be divisible; KV heads divisible, or kept several times."""
    assert why == splits(catalogue.model(name), tensor)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(MODELS),
    small=st.integers(8, 300),
    more=st.integers(0, 200),
    kind=st.sampled_from(["bf16", "fp8", "awq"]),
    per_node=st.sampled_from([1, 2, 4, 6, 8, 16]),
    tokens=st.sampled_from([1024, 8192, 32768]),
)
def test_more_memory_never_needs_more_devices(name, small, more, kind, per_node, tokens):
    """The rule is monotone in the memory of a device, whatever the model, format, context and size of a node."""
    model, work = catalogue.model(name), Workload(context_tokens=tokens)
    with_less = fewest_devices(model, small * GIB, work, kind, per_node)
    with_more = fewest_devices(model, (small + more) * GIB, work, kind, per_node)

    assert not with_less or 0 < with_more <= with_less


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(MODELS), count=st.integers(1, 24), users=st.integers(1, 300))
def test_an_arrangement_uses_what_there_is_or_says_what_would_do(name, count, users):
    """Either it fits on the count, or the hint names a count with which it does."""
    try:
        found = arrange(name, "H20", count, Workload(users=users, context_tokens=4096))
    except DoesNotFit as error:
        needed = int(error.hint.removeprefix("--count "))
        assert count < needed
        found = arrange(name, "H20", needed)
    assert found.devices <= max(count, 1) or found.devices <= 64
    assert found.devices == found.replica_devices * found.data_parallel


REFUSED = {
    "too few devices": (
        ("GLM-4.6", "RTX 4090", 8), {}, DoesNotFit, "657 GiB.* 8 x `RTX 4090` give 173 GiB", "--count 32",
    ),
    "heads that are not divisible": (
        ("Qwen3-8B", "H20", 8), {"tensor_parallel": 3}, UsageError, "32 heads.* 3 devices", "--tp 2",
    ),
    "more parts than devices": (
        ("Qwen3-8B", "H20", 4), {"tensor_parallel": 4, "data_parallel": 2}, UsageError, "8 parts.* 4 devices",
        "--count 8",
    ),
    "8 bits on an A100": (
        ("Qwen3-8B", "A100 SXM 80GB"), {"weight_format": "fp8"}, UsageError, "A100.* fp8 arithmetic", "--format bf16",
    ),
    "a bf16 model on a T4": (
        ("Qwen3-8B", "T4", 2), {}, UsageError, "T4.* bf16", "--format fp16",
    ),
    "weights of their own": (
        ("Qwen3-8B", "H20"), {"weight_format": "awq"}, UsageError, "holds bf16 weights.* awq", "--repository",
    ),
    "an engine that is not for them": (
        ("Qwen3-8B", "M4 Max 128GB"), {"engine": "vllm"}, UsageError, "vllm does not run on `M4 Max", "llama.cpp",
    ),
    "a device too old": (
        ("Qwen3-8B", "Tesla P100 16GB"), {"engine": "vllm"}, UsageError, "vllm does not run on `Tesla P100",
        "llama.cpp",
    ),
    "no engine at all": (
        ("Qwen3-8B", "TPU v6e"), {}, UsageError, "does not run on `TPU", "penjing machines",
    ),
    "GGUF for vLLM": (
        ("Qwen3-8B", "H20"), {"engine": "vllm", "weight_format": "gguf"}, UsageError, "GGUF", "--engine llama.cpp",
    ),
    "no GGUF for llama.cpp": (
        ("Qwen3-8B", "H20"), {"engine": "llama.cpp"}, UsageError, "llama.cpp reads GGUF", "--format gguf",
    ),
    "tensors cut by llama.cpp": (
        ("Qwen3-8B", "H20", 2), {"published": "gguf", "tensor_parallel": 2}, UsageError, "deals out layers", "--pp",
    ),
    "an unknown engine": (
        ("Qwen3-8B", "H20"), {"engine": "vlm"}, UnknownName, "no engine `vlm`", "did you mean `--engine vllm`",
    ),
    "an unknown format": (
        ("Qwen3-8B", "H20"), {"weight_format": "FP-8"}, UnknownName, "no format `FP-8`", "did you mean `--format fp8`",
    ),
    "more than anybody launches at once": (
        ("Qwen3-8B", "H20", 10**9), {}, UsageError, "1000000000 x `H20`.* 4096", "--count 4096",
    ),
    "open to all without a key": (
        ("Qwen3-8B", "H20"), {"host": "0.0.0.0"}, UsageError, "no API key", "--host 127.0.0.1",
    ),
    "replicas that span nodes": (
        ("GLM-4.6", "A100 SXM 80GB", 32), {"data_parallel": 2}, UsageError, "span nodes", "--dp 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_would_do(case):
    """Each refusal has both numbers, or both names, and a hint that can be pasted."""
    words, asked, kind, problem, hint = REFUSED[case]

    with pytest.raises(kind, match=problem) as caught:
        arrange(*words, **asked)

    assert hint in caught.value.hint


def test_a_context_longer_than_the_model_takes_is_refused():
    """With both numbers, and the longest there is."""
    with pytest.raises(UsageError, match="40960 tokens, a context of 50000") as caught:
        arrange("Qwen3-8B", "H20", work=Workload(context_tokens=50000))

    assert "--context 40960" == caught.value.hint


def test_a_memory_that_nobody_knows_is_refused():
    """Nothing is arranged on a guess."""
    machine = catalogue.machine("H20")
    unknown = replace(machine, tiers=(replace(machine.tiers[0], capacity_bytes=None),))

    with pytest.raises(UsageError, match="nobody says how much memory"):
        arranged(catalogue.model("Qwen3-8B"), unknown, WORK, Asked(weights="a/b"))


@pytest.mark.parametrize(
    "name", [name for name in catalogue.model_names() if name.startswith(("Q", "G", "L"))]
)
def test_every_model_is_laid_somewhere(name):
    """Every model fits on some number of 141 GB devices, in bf16."""
    model = catalogue.model(name)

    assert fewest_devices(model, 141_000_000_000, Workload(context_tokens=1024), "bf16") > 0


def test_formats_are_ordered_by_bits():
    """A format of fewer bits never takes more bytes."""
    model = catalogue.model("gpt-oss-120b")
    sizes = {name: sum(weights_bytes(model, name)) for name in FORMATS if name != "gguf"}

    assert sizes["bf16"] == sizes["fp16"] > sizes["fp8"] == sizes["int8"] > sizes["nvfp4"] > sizes["awq"]
    assert sizes["bf16"] > sizes["mxfp4"]
