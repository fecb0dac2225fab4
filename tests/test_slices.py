"""Files with real shapes and random weights: the engine runs them as it runs the model that they are cut from."""

from __future__ import annotations

import numpy as np
import pytest

from penjing import slices
from penjing.engines.llamacpp import LlamaCpp
from penjing.gguf import read_header, read_model
from penjing.plan import Settings
from penjing.quality import stock
from penjing.quantize.native import Native

import small_models  # isort: skip

SETTINGS = Settings(1, 1, False, False, context_tokens=512)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_models.write(tmp_path_factory.mktemp("slices") / "source.gguf", layers=4)


def test_a_slice_runs(source, tmp_path):
    """Fewer layers and tokens, every matrix in another type, norms as they were; decode alone and together, prefill."""
    out, types = tmp_path / "slice.gguf", stock.uniform(read_model(source), "q4_K")
    slices.write(read_header(source), types, 2, 64, out, Native())
    model = read_model(out)

    assert (len(model.layers), model.vocabulary) == (2, 64)
    assert {t.type for t in model.tensors if stock.is_quantized(t)} == {"q4_K"}
    assert not [
        key for key in read_header(out).metadata if key.startswith("tokenizer.") and "model" not in key
    ]
    norm = next(t for t in read_header(source).tensors if t.name == "blk.1.attn_norm.weight")
    copied = next(t for t in read_header(out).tensors if t.name == norm.name)
    assert _raw(out, copied) == _raw(source, norm)
    with LlamaCpp().open(out, SETTINGS) as session:
        assert session.vocabulary == 64
        for kind, depth, together in (("prefill", 0, 1), ("decode", 16, 1), ("decode", 16, 3)):
            samples = session.time(kind, 4, depth, 2, together=together)
            assert [(s.kind, s.tokens, s.depth) for s in samples] == [(kind, 4, depth)] * 2
        assert session.time("prefill", 4, 0, 1)  # the contexts of one sequence are there again


def test_all_of_a_model_keeps_its_tokenizer(source, tmp_path):
    """The whole model in other types is as large as the real one would be, reads text, and gives finite logits."""
    out, model = tmp_path / "whole.gguf", read_model(source)
    types = stock.mix(model, "Q4_K_M")
    slices.write(read_header(source), types, len(model.layers), model.vocabulary, out, Native())
    assert {t.name: t.type for t in read_model(out).tensors if t.name in types} == types
    with LlamaCpp().open(out, SETTINGS) as session:
        tokens = session.tokenize("a slice of the whole")
        assert all(np.isfinite(rows).all() for rows in session.logits(tokens))


def test_arrays_with_an_entry_for_each_layer_are_cut(tmp_path):
    """Some families give heads by layer; the engine insists on as many entries as layers."""
    import gguf

    source, out = tmp_path / "source.gguf", tmp_path / "slice.gguf"
    small_models.write(source, layers=3)
    reader = gguf.GGUFReader(source)
    by_layer = _with_arrays(reader, tmp_path / "arrays.gguf")
    slices.write(read_header(by_layer), {}, 2, 64, out, Native())
    assert read_header(out).metadata["llama.attention.head_count_kv"] == (2, 2)
    with LlamaCpp().open(out, SETTINGS) as session:
        assert session.time("decode", 2, 0, 1)


def _raw(path, info):
    with path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.n_bytes)


def _with_arrays(reader, path):
    """A copy whose count of KV heads is an array."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name == "llama.attention.head_count_kv":
            writer.add_array(field.name, [2, 2, 2])
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
