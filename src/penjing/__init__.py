"""penjing: large language models on the hardware you have, planned by measurement."""

__version__ = "0.1.0"
