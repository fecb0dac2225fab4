"""Engines: the one seam to the outside. `base` states the contract."""
