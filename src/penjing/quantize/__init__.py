"""Weights into fewer bits: the engine's own quantizers, and what the formats leave free beyond them."""
