"""What ships: machines by datasheet, models by shape; and files of users in the same form."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from penjing import catalogue, gguf
from penjing.errors import BadFile, UnknownName
from penjing.fetch import shipped_model
from penjing.model import Layer

MODELS = {model.name: model for model in catalogue.models()}
MACHINES = {machine.name: machine for machine in catalogue.machines()}


def test_shape_agrees_with_the_real_file() -> None:
    """SmolLM2 from its shape has the tensors, layers and active weights of the file that ships."""
    real, grown = gguf.read_model(shipped_model()), catalogue.model("SmolLM2-135M")
    assert {t.name: t.shape for t in real.tensors} == {t.name: t.shape for t in grown.tensors}
    assert real.layers == grown.layers
    assert real.active_weights == grown.active_weights


def test_mixed_layers() -> None:
    """Every second layer of gpt-oss has a window; every fourth of Qwen3.5 a cache, the others a state."""
    assert Layer("window", 64, 512, 512, 128) == MODELS["gpt-oss-20b"].layers[0]
    assert Layer("full", 64, 512, 512) == MODELS["gpt-oss-20b"].layers[1]
    state = 4 * (3 * (2 * 16 * 128 + 32 * 128) + 32 * 128 * 128)
    assert (Layer("recurrent", state_bytes=state),) * 3 == MODELS["Qwen3.5-4B"].layers[:3]
    assert MODELS["Qwen3.5-4B"].layers[3] == Layer("full", 16, 1024, 1024)


def test_experts_are_active_by_their_share() -> None:
    """One token of DeepSeek-V3 uses 8 of 256 experts: 36.6 of 671 billion weights, embedding aside."""
    model = MODELS["DeepSeek-V3"]
    assert (model.experts, model.experts_used) == (256, 8)
    assert pytest.approx(model.active_weights) == 37_552_297_472 - 129_280 * 7168


def test_experts_come_in_the_type_of_their_makers() -> None:
    """gpt-oss is published in MXFP4, so that the 120b fits 65 GB; asking for f16 gives f16."""
    assert pytest.approx(MODELS["gpt-oss-120b"].n_bytes, rel=0.01) == 65.4e9
    assert 2 * MODELS["gpt-oss-120b"].n_weights == pytest.approx(
        catalogue.model("gpt-oss-120b", "f16").n_bytes, rel=0.001
    )


@pytest.mark.parametrize(
    ("kind", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_K", 4.5), ("Q6_k", 6.5625)]
)
def test_types_on_request(kind: str, bits: float) -> None:
    """In a type of so many bits, a model is that large but for its norms."""
    model = catalogue.model("Qwen3-8B", kind)
    assert bits / 8 * model.n_weights == pytest.approx(model.n_bytes, rel=0.001)


def test_rows_that_no_block_divides_fall_back() -> None:
    """Rows of 576 weights are no whole blocks of 256: K-quants become the type of ggml's own rules."""
    types = catalogue.model("SmolLM2-135M", "q4_K").tensor_types
    assert {"q5_0", "q4_K", "f32"} == types.keys()  # the width is 576, the hidden width 1536


def test_unknown_type() -> None:
    """A type that ggml does not have is refused with those it has."""
    with pytest.raises(UnknownName, match="`q9_9` is not a type") as caught:
        catalogue.model("Qwen3-8B", "q9_9")
    assert "q4_K" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["Qwen3-8B", "qwen3 8b", "QWEN3_8B", " qwen3-8b ", "Qwen/Qwen3-8B", "qwen/qwen3-8b"]
)
def test_forgiving_names_of_models(name: str) -> None:
    """Case, spaces and dashes do not matter, and the repository is a name too."""
    assert catalogue.model(name).name == "Qwen3-8B"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rtx 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("H20", "H20"),
        ("m4max", "M4 Max 128GB"),
        ("epyc 9355", "EPYC 9355 384GB"),
        ("M3 Ultra", "M3 Ultra 512GB"),
        ("b200", "B200 SXM 180GB"),
        ("910b", "Ascend 910B3"),
        ("h100", "H100 SXM 80GB"),
        ("NVIDIA GeForce RTX 4090 24GB", "RTX 4090"),
    ],
)
def test_forgiving_names_of_machines(name: str, found: str) -> None:
    """A part of a name is enough where only one machine has it, and a whole name wins."""
    assert found == catalogue.machine(name).name


def test_unknown_names_come_with_the_nearest() -> None:
    """A slip of the finger is answered with what was probably meant."""
    with pytest.raises(UnknownName, match="no machine `RTX 4900`") as caught:
        catalogue.machine("RTX 4900")
    assert "did you mean `RTX 4090`" in caught.value.hint
    with pytest.raises(UnknownName, match="no model `Qwen3-9B`") as caught:
        catalogue.model("Qwen3-9B")
    assert "`Qwen3-8B`" in caught.value.hint and "`penjing models`" in caught.value.hint


@pytest.mark.parametrize("name", ["", "  ", "---", "💻", "x" * 10_000])
def test_names_of_nothing(name: str) -> None:
    """Whatever is no name is refused as any unknown name."""
    with pytest.raises(UnknownName):
        catalogue.machine(name)


def test_part_of_several_names() -> None:
    """A part that several entries have is refused with the list of them."""
    with pytest.raises(
        UnknownName, match="could be 4 machines of the catalogue: `EPYC 7773X 1024GB`, `EPYC 9005 768GB`"
    ):
        catalogue.machine("EPYC")


@pytest.mark.parametrize("name", MACHINES)
def test_machine_as_json_is_the_same_machine(name: str, tmp_path: Path) -> None:
    """A machine survives the way through JSON, and JSON with more keys than the noun is read too."""
    path = tmp_path / "machine.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(MACHINES[name]) | {"schema": 1}))
    assert MACHINES[name] == catalogue.machine(str(path))


def write_machine(path: Path, tier: str) -> str:
    path.write_text(f'name = "mine"\n[[tiers]]\nname = "DRAM"\n{tier}\n')
    return str(path)


GOOD = 'capacity_bytes = 8_000_000_000\nread_bytes_per_s = { value = 2e10, source = "assumed" }'


def test_machine_of_a_user(tmp_path: Path) -> None:
    """A few lines are enough for a machine; what they do not say is unknown."""
    machine = catalogue.machine(write_machine(tmp_path / "mine.toml", GOOD))
    assert (machine.name, machine.memory_total_bytes, machine.cores.physical) == ("mine", None, None)
    assert machine.tiers[0].read_bytes_per_s.value == 2e10
    assert (
        catalogue.machine(write_machine(tmp_path / "mine.toml", GOOD.replace("8_000_000_000", "8e9")))
        == machine
    )


SIZE, RATE = "8_000_000_000", "2e10"
PLACE, RATE_PLACE = r"at `tiers\[0\].capacity_bytes`: ", r"at `tiers\[0\].read_bytes_per_s.value`: "


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (SIZE, '"8 GB"', PLACE + r"Expected `int \| null`, got `str` \(in bytes\)"),
        (SIZE, "0", PLACE + r"expected more than 0, got 0 \(in bytes\)"),
        (RATE, '"fast"', RATE_PLACE + r"Expected .* \(in bytes per second\)"),
        (
            RATE,
            "8000",
            RATE_PLACE + "8000 is not plausible, expected 1e.08 to 1e.15; 8 TB/s are 8e12, .*bytes per s",
        ),
        (RATE, "8", RATE_PLACE + "8 is not plausible"),
        (SIZE, "80", PLACE + "80 is not plausible, expected .* 16 GiB are 17_179_869_184 .in bytes"),
        (RATE, "0", RATE_PLACE + r"expected more than 0, got 0.0 \(in bytes per second\)"),
        (RATE, "-1.5", "expected more than 0, got -1.5"),
        (RATE, "nan", "expected more than 0, got nan"),
        (RATE, "inf", "expected more than 0, got inf"),
        ("assumed", "guess", "Invalid enum value 'guess'"),
        ("read_bytes", "read_byte", r"missing required field `read_bytes_per_s` \(in bytes per second\)"),
        ("capacity", "speed = 3\ncapacity", r"at `tiers\[0\].speed`: there is no such field; known are name"),
        (
            '{ value = 2e10, source = "assumed" }',
            "2e10",
            r"Expected `object`.* write `{ value = 1e12, source = ",
        ),
        ("value = 2e10, ", "values = 2e10, ", "read_bytes_per_s.values`: there is no such field"),
        ("value", "values = 1, value", "read_bytes_per_s.values`: there is no such field"),
        (GOOD, "", "missing required field `capacity_bytes`"),
    ],
)
def test_wrong_field_of_a_machine(old: str, new: str, expected: str, tmp_path: Path) -> None:
    """A wrong field is named with its place, what is expected, and its unit."""
    path = write_machine(tmp_path / "mine.toml", GOOD.replace(old, new))
    with pytest.raises(BadFile, match=expected):
        catalogue.machine(path)


@pytest.mark.parametrize(
    "content", [b"", b"name = 'x'", b"name = ", b"\xff\xfe", b"[" * 5000, b"x" * 5_000_000]
)
def test_file_that_is_no_machine(content: bytes, tmp_path: Path) -> None:
    """A file of something else ends in one line."""
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(BadFile):
        catalogue.machine(str(tmp_path / "x.toml"))


@pytest.mark.parametrize("content", ["[1]", "3", "{", "null", "[" * 100_000])
def test_json_that_is_no_machine(content: str, tmp_path: Path) -> None:
    """JSON of something else ends in one line."""
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BadFile):
        catalogue.machine(str(tmp_path / "x.json"))


def test_missing_file() -> None:
    """A path that is not there is said to be so, not looked for in the catalogue."""
    with pytest.raises(BadFile, match=r"cannot read `no/such.toml`: No such file"):
        catalogue.machine("no/such.toml")


SHAPE = {
    "name": "mine", "architecture": "llama", "source": "by hand", "layers": 2, "width": 64, "vocabulary": 100,
    "context_tokens": 128, "tied": True, "hidden": 96,
    "grouped": {"heads": 4, "kv_heads": 2, "head_width": 16},
}  # fmt: skip


def write_shape(path: Path, **changes: object) -> str:
    tables = {k: v for k, v in (SHAPE | changes).items() if v is not None}
    lines = [f"{k} = {json.dumps(v)}" for k, v in tables.items() if not isinstance(v, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    path.write_text("\n".join(lines))
    return str(path)


def test_shape_of_a_user(tmp_path: Path) -> None:
    """A shape of one's own gives a model; its weights counted by hand."""
    model = catalogue.model(write_shape(tmp_path / "mine.toml"))
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    assert 100 * 64 + 64 + 2 * (2 * 64 + attention + 3 * 64 * 96) == model.n_weights
    assert (Layer("full", 4, 32, 32),) * 2 == model.layers


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": 0}, "at `layers`: Expected `int` >= 1"),
        ({"layers": 10**6}, "at `layers`: Expected `int` <= 512"),
        ({"width": "64"}, "at `width`: Expected `int`, got `str`"),
        ({"colour": "red"}, "contains unknown field `colour`"),
        ({"widht": 3}, "contains unknown field `widht`, did you mean `width`"),
        ({"grouped": {"heads": 4, "kv_head": 4}}, "unknown field `kv_head`, did you mean `kv_heads`"),
        ({"grouped": None}, "needs one of the tables `grouped` and `latent`"),
        ({"grouped": {"heads": 4}}, "at `grouped`: missing required field `kv_heads`"),
        ({"hidden": None}, "needs `hidden` or the table `experts`"),
        ({"experts": {"count": 4, "used": 5, "hidden": 8}}, "`experts.used` must be between 1"),
        ({"full_every": 2}, "a window needs `grouped.window_tokens`"),
        ({"dense_layers": 3}, "`dense_layers` exceeds `layers`"),
        ({"kinds": ["full"]}, "there are 1 `kinds` for 2 layers"),
        ({"kinds": ["recurrent", "full"]}, "`recurrent` layers need that table"),
        ({"source": None}, "missing required field `source`"),
    ],
)
def test_wrong_field_of_a_shape(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    """A shape that contradicts itself, or lacks something, says what."""
    with pytest.raises(BadFile, match=expected):
        catalogue.model(write_shape(tmp_path / "mine.toml", **changes))


def test_one_name_reads_one_file() -> None:
    """To find an entry takes no parsing of the others."""
    code = "from penjing import catalogue as c; c.machine('rtx 4090'); print(c._shipped_machine.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
