"""Plans for hardware that is described, not present: what fits, how fast, what binds, how many devices, at what cost.

`hardware` reads what a user writes (`8x RTX 4090 + 512GB DDR5`), `ways` says how a model could be run there,
`appraise` what each way would give, and `answers` chooses.
"""
