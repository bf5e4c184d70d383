"""Programs of the benchmarks' ranks, and the models and contenders they share.

They use only the public API of mlxdist, so that `compare` can run them with the package
of another checkout.
"""
