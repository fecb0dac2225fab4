"""llama.cpp, as packaged by `xllamacpp`: the C API for planning and running, its server for serving."""

from penjing.engines.llamacpp.engine import LlamaCpp

__all__ = ["LlamaCpp"]
