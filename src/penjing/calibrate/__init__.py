"""Sensitivity of a model's weights, measured on this machine: needs the extra `calibrate` (torch, transformers)."""
