"""The strict reader of GGUF files: from an untrusted path to a checked `Header` and a `Model`."""

from penjing.gguf.header import Header, TensorInfo
from penjing.gguf.parts import read_header
from penjing.gguf.reader import read_model
from penjing.gguf.values import ArrayOf

__all__ = ["ArrayOf", "Header", "TensorInfo", "read_header", "read_model"]
