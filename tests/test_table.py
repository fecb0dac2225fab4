"""Rows of tables that others made: read one by one, understood in their words, counted every one."""

from __future__ import annotations

import gzip

import pytest
from msgspec.structs import replace

from penjing.cost.device import Device
from penjing.cost.shapes import Shapes
from penjing.errors import BadFile
from penjing.table import judge, rows
from penjing.table.formats import size_in, weight_format
from penjing.table.resolve import Case, Unsupported, resolve
from penjing.table.rows import Malformed, Row
from penjing.table.settings import engine_of, experts_used, job_of, way_of, weights_of

HEAD = ",".join(rows.COLUMNS)
CARD = Device("card", "datacenter", "nvidia", "hbm", 80e9, 3e12, {"bf16": 9e14})
CPU = Device("processor", "cpu", "amd", "ddr", 64e9, 8e10, {"int8": 9e12})
MODEL = Shapes("model", 4096, 128e3, 32, 7e9, 0.5e9, routed=20e9, moe_layers=32, experts=64, experts_used=8)


def row(**cells: object) -> Row:
    usual: dict[str, object] = {
        "line": 2, "id": "t-1", "device": "NVIDIA H100 SXM 80GB", "count": 1, "engine": "vLLM", "model": "Qwen3-8B",
        "weight_format": "", "cache_format": "", "phase": "decode", "prompt_tokens": 512.0, "output_tokens": 128.0,
        "batch": 1.0, "parallelism": "", "metric": "tokens_per_s_total", "value": 100.0, "notes": "",
    }  # fmt: skip
    return Row(**(usual | cells))


@pytest.mark.parametrize(
    "text, kernel, bits",
    [
        ("FP16", "f16", 16), ("BF16", "f16", 16), ("FP8", "f8", 8), ("INT8", "i8", 8), ("W8A8", "i8", 8),
        ("AWQ", "i4", 4.25), ("GPTQ-Int4", "i4", 4.25), ("W4A16", "i4", 4.25), ("4-bit", "i4", 4.25),
        ("NVFP4", "fp4", 4.5),
        ("MXFP4", "fp4", 4.25), ("Q4_K_M", "qk", 4.78), ("Q4_K - Small", "qk", 4.55), ("Q8_0", "q8", 8.5),
        ("Q4_0", "q4", 4.5), ("IQ2_XS - 2.3125 bpw", "iq", 2.3125), ("UD-Q4_K_XL", "qk", 4.9),
        ("W1.58 (2-bit)", "low", 2),
        ("INT8-CW", "i8", 8), ("BFP8", "f8", 8.5),
    ],
)  # fmt: skip
def test_names_of_formats(text, kernel, bits):
    """The names that engines and files use for formats give bits and a class of kernels."""
    found = weight_format(text)

    assert found is not None
    assert (kernel, bits) == (found.kernel, found.bits)


def test_a_format_of_experts_leaves_the_rest_alone():
    """`MXFP4 (MoE)` has 4 bits in experts only; `X experts, Y attention` says both, and its size counts."""
    mixture, both = weight_format("MXFP4 (MoE)"), weight_format("IQ4_XS experts, Q5_K attention (15.4 GiB)")

    assert mixture is not None and both is not None
    assert (8.5, 4.25) == (mixture.bits, mixture.routed_bits)
    assert (5.65, 4.27) == (both.bits, both.routed_bits)
    assert 15.4 * 2**30 == both.file_bytes


def test_words_that_are_no_format():
    """Nothing is guessed from other words; a size in the notes is found behind `file`."""
    assert weight_format("") is None
    assert weight_format("mixed") is None
    assert 7.54 * 2**30 == size_in('flash-attn on; file 7.54 GiB as "qwen2"')
    assert size_in("80 GB of memory") is None


@pytest.mark.parametrize(
    "cells, kernel",
    [
        ({"model": "Qwen/Qwen3-8B-FP8"}, "f8"), ({"model": "Qwen3-14B-AWQ"}, "i4"), ({"model": "x-7B-Q4_K_M"}, "qk"),
        ({"model": "openai/gpt-oss-120b"}, "fp4"), ({"model": "deepseek-ai/DeepSeek-R1-0528"}, "f8"),
        ({"model": "Qwen3-8B"}, "f16"), ({"model": "Qwen3-8B-FP8", "weight_format": "INT4"}, "i4"),
    ],
)  # fmt: skip
def test_a_format_that_the_table_leaves_out(cells, kernel):
    """It stands in the model's name, or is the one its makers publish, or 16 bits; the column comes first."""
    assert kernel == weights_of(row(**cells)).kernel


@pytest.mark.parametrize(
    "engine, device, expected",
    [
        ("vLLM", CARD, "serving"), ("TensorRT-LLM 1.0", CARD, "serving"), ("llama.cpp CUDA", CARD, "llama"),
        ("llama.cpp CPU", CPU, "cpu"), ("ik_llama.cpp CPU", CPU, "cpu_tuned"), ("Ollama", CPU, "cpu"),
        ("HF Transformers", CARD, "eager"), ("ExLlamaV2", CARD, "compiled"), ("OpenVINO", CPU, "graph"),
        ("ik_llama.cpp CUDA+CPU", CARD, "llama"), ("FlexLLMGen", CARD, "offload"),
        ("an engine of tomorrow", CARD, "compiled"),
        ("", CARD, "serving"), ("", CPU, "cpu"),
    ],
)  # fmt: skip
def test_classes_of_engines(engine, device, expected):
    """A name decides by what it contains; no name means the usual engine of that kind of device."""
    assert expected == engine_of(row(engine=engine), device)


@pytest.mark.parametrize(
    "cells, expected",
    [
        ({"count": 8, "parallelism": "TP8"}, (8, 1, 1, 1)),
        ({"count": 16, "parallelism": "TP8 PP2"}, (8, 2, 1, 1)),
        ({"count": 8, "notes": "flags: -tp 4 -dp 2"}, (4, 1, 2, 1)),
        ({"count": 4}, (4, 1, 1, 1)),
        ({"count": 4, "engine": "llama.cpp CUDA", "parallelism": "layer split"}, (1, 1, 1, 4)),
        ({"count": 2, "engine": "llama.cpp CUDA"}, (1, 1, 1, 2)),
        ({"count": 1}, (1, 1, 1, 1)),
    ],
)  # fmt: skip
def test_degrees_of_parallelism(cells, expected):
    """What is written counts; else serving engines split tensors, and llama.cpp splits layers."""
    way = way_of(row(**cells), CARD, MODEL)

    assert expected == (way.tensor, way.pipeline, way.data, way.split)


@pytest.mark.parametrize(
    "cells, sequences, tokens",
    [
        ({"engine": "vLLM"}, 1024, 8192),
        ({"engine": "vLLM", "date": "2024-11"}, 256, 2048),
        ({"engine": "vLLM", "notes": "100 requests; --max-num-seqs 64 --max-num-batched-tokens 4096"}, 64, 4096),
        ({"engine": "SGLang", "notes": "100 requests; --chunked-prefill-size 1024"}, 2048, 1024),
        ({"engine": "TensorRT-LLM"}, 2048, 8192),
        ({"engine": "transformers"}, None, 8192),
        ({"engine": "llama.cpp CUDA"}, None, 512),
    ],
)  # fmt: skip
def test_defaults_of_engines(cells, sequences, tokens):
    """What is written counts; else an engine's own defaults, which are larger on vLLM's large devices since 2025."""
    large = replace(CARD, memory_bytes=85e9)

    way = way_of(row(**({"notes": "100 requests"} | cells)), large, MODEL)

    assert (sequences, tokens) == (way.most_sequences, way.micro_batch)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("EP8", (1, 8, True)), ("TP8 EP8", (8, 1, False)), ("TP8; attention data-parallelism", (1, 8, True)),
        ("TP2 DP4 EP8", (2, 4, True)), ("TP2 DP4", (2, 4, False)),
    ],
)  # fmt: skip
def test_experts_that_ranks_share(words, expected):
    """Expert parallelism with nothing besides means that attention is computed by each rank for its own sequences."""
    way = way_of(row(count=8, parallelism=words), CARD, MODEL)

    assert expected == (way.tensor, way.data, way.shared)
    assert not way_of(row(count=8, parallelism=words), CARD, replace(MODEL, moe_layers=0)).shared


def test_runs_of_many_lengths_and_engines_without_graphs():
    """Conversations, and means that are no whole numbers; vLLM on an NPU starts kernels one by one."""
    npu = replace(CARD, kind="npu", vendor="other")

    assert [True, True, False] == [
        job_of(row(prompt_tokens=p, notes=n)).varied for p, n in ((9.0, "ShareGPT"), (214.5, ""), (9.0, ""))
    ]
    assert [False, True, True] == [
        way_of(row(engine=e), d, MODEL).graphs for e, d in (("vLLM", npu), ("MindIE", npu), ("vLLM", CARD))
    ]


@pytest.mark.parametrize(
    "words, date, expected",
    [("fa 1", "2024-05", True), ("fa 0", "2025-10", False), ("", "2024-05", False), ("", "2025-10", True)],
)
def test_fused_attention(words, date, expected):
    """`fa 0` turns it off and `fa 1` on; else it is on since it is llama.cpp's default."""
    assert expected == way_of(row(engine="llama.cpp CUDA", notes=words, date=date), CARD, MODEL).flash


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2024-05", "2024-05"),
        ("2025-2026", "2026-01"),
        ("2023-2025", "2024-07"),
        ("v1.0 (2025)", "2025"),
        ("", ""),
    ],
)
def test_dates(text, expected, tmp_path):
    """A month where one is told; the turn of the year between two years."""
    path = tmp_path / "t.csv"
    path.write_text(f"device,model,phase,metric,value,date_or_version\nd,m,decode,TPOT_ms,1,{text}\n")

    assert [expected] == [r.date for r in rows.read(path)]


def test_engines_that_do_not_batch():
    """Megatron-LM decodes one sequence after the other."""
    assert [False, True] == [way_of(row(engine=e), CARD, MODEL).batched for e in ("Megatron-LM", "vLLM")]
    assert "compiled" == engine_of(row(engine="DeepSpeed-Inference"), CARD)


def test_experts_on_the_host():
    """Words say which experts the host holds; where they do not, what exceeds the memory."""
    llama = {"engine": "llama.cpp CUDA+CPU", "weight_format": "Q4_0"}

    every = way_of(row(parallelism="routed experts on CPU, attention on GPU", **llama), CARD, MODEL)
    some = way_of(row(parallelism="experts of last 8 layers on CPU", **llama), CARD, MODEL)
    fits = way_of(row(parallelism="", **llama), CARD, MODEL)

    assert (1.0, 0.25, 0.0) == (every.host_routed, some.host_routed, fits.host_routed)


def test_phases_and_what_they_count():
    """A fixed batch is `mixed`; where the engine chooses, or requests come by themselves, it is in flight."""
    fixed = row(phase="mixed", batch=16.0)

    assert "mixed" == job_of(fixed).phase
    assert "in_flight" == job_of(row(phase="mixed", batch=None)).phase
    assert "in_flight" == job_of(row(phase="mixed", batch=16.0, notes="grade=B; 1000 requests")).phase
    assert 1000 == job_of(row(phase="mixed", notes="1000 requests")).requests


def test_experts_that_a_row_changes():
    """`4 experts` and `6 routed experts per token` change the model; experts on a processor do not."""
    assert 4 == experts_used(row(notes="grade=B; 4 experts (-ser 4,1)"))
    assert 6 == experts_used(row(model="DeepSeek-V3 (6 routed experts per token)"))
    assert experts_used(row(notes="hybrid: routed experts of the last 14 layers on CPU")) is None


@pytest.mark.parametrize(
    "cells, expected",
    [
        ({"metric": "tokens_per_s_total", "value": 90.0}, 90),
        ({"metric": "tokens_per_s_per_device", "value": 90.0, "count": 8}, 720),
        ({"metric": "tokens_per_s_per_user", "value": 90.0, "batch": 4.0}, 360),
        ({"metric": "TPOT_ms", "value": 10.0, "batch": 4.0}, 400),
        ({"metric": "TTFT_ms", "value": 100.0, "phase": "prefill", "output_tokens": 0.0}, 5120),
        ({"phase": "mixed", "batch": 4.0, "notes": "counts=in+out", "value": 640.0}, 128),
    ],
)  # fmt: skip
def test_one_rate_from_every_metric(cells, expected):
    """Whatever was printed becomes tokens per second over all devices, of prompts or of answers."""
    found = resolve(row(**cells))

    assert isinstance(found, Case)
    assert pytest.approx(expected) == judge.measured_rate(found)


def test_labels_that_nobody_knows_are_named():
    """A row without a known device or model is set aside with its reason."""
    device, model = resolve(row(device="Abacus 3000")), resolve(row(model="No-Such-Model-7B"))

    assert isinstance(device, Unsupported) and "unknown device" == device.why
    assert isinstance(model, Unsupported) and "unknown model" == model.why


def _line(**cells: str) -> str:
    usual = {"id": "t-1", "device": "NVIDIA H100 SXM 80GB", "device_count": "1", "engine": "vLLM", "model": "Qwen3-8B",
             "phase": "decode", "prompt_tokens": "512", "batch_or_concurrency": "1", "metric": "tokens_per_s_total",
             "value": "130"}  # fmt: skip
    return ",".join((usual | cells).get(name, "") for name in rows.COLUMNS)


@pytest.mark.parametrize(
    "cells, words",
    [
        ({"value": "fast"}, "`value` is `fast`, expected a number"),
        ({"value": "-3"}, "expected a finite number from 0"),
        ({"value": "0"}, "expected more than 0"),
        ({"value": "nan"}, "finite"),
        ({"phase": "thinking"}, "`phase` is `thinking`, expected one of prefill"),
        ({"metric": "furlongs"}, "`metric` is `furlongs`"),
        ({"device": ""}, "`device` is empty"),
        ({"device_count": "1.5"}, "whole number"),
        ({"prompt_tokens": "many"}, "`prompt_tokens` is `many`"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_told_and_the_rest_is_judged(tmp_path, cells, words):
    """The line and the reason are reported; rows before and after it count."""
    path = tmp_path / "table.csv"
    path.write_text("\n".join([HEAD, _line(), _line(**cells), _line(), ""]))

    report = judge.report(rows.read(path))

    assert [3] == [bad["line"] for bad in report["malformed"]]
    assert words in report["malformed"][0]["why"]
    assert (3, 2, {"malformed row": 1}) == (report["rows"], report["predicted"], report["unsupported"])


def test_a_row_with_too_many_or_too_few_fields_is_malformed(tmp_path):
    """Fields cannot be told apart where their number is wrong."""
    path = tmp_path / "table.csv"
    path.write_text("\n".join([HEAD, _line() + ",more", "short,row", ""]))

    assert [Malformed, Malformed] == [type(found) for found in rows.read(path)]


def test_tables_may_be_compressed(tmp_path):
    """`.csv.gz` is read as `.csv` is."""
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress("\n".join([HEAD, _line(), ""]).encode()))

    assert [Row] == [type(found) for found in rows.read(path)]


def test_files_that_are_no_tables(tmp_path):
    """A missing file, a missing column, and bytes that are no text are errors of the user, in words."""
    path = tmp_path / "table.csv"
    with pytest.raises(BadFile, match="cannot read"):
        rows.read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(BadFile, match="no column `device`"):
        rows.read(path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadFile, match="UTF-8"):
        rows.read(path)


def test_doubted_rows_are_predicted_and_stand_apart(tmp_path):
    """What the table grades C or marks as odd does not count among the errors, and is not dropped."""
    path = tmp_path / "table.csv"
    odd = [_line(notes="grade=C; second-hand"), _line(notes="grade=A; anomaly=warm-up")]
    path.write_text("\n".join([HEAD, _line(notes="grade=A"), *odd, ""]))

    report = judge.report(rows.read(path))

    assert (3, 3, 1) == (report["rows"], report["predicted"], report["judged"])
    assert 2 == report["doubted_by_the_table"]["decode"]["rows"]
