"""The version of the package, which packaging and the ranks' comparison read."""

__version__ = "0.1.0"
