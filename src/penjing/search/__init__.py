"""Make candidates, drop what does not fit, rank the rest, and say why each was refused. Pure functions."""
