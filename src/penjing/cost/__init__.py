"""Bytes and seconds of a plan: pure functions."""
