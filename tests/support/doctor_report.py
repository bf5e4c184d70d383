"""What `mlxdist doctor` reports, for the tests of what reads it."""


def doctor_report(*pairs, **fields):
    """Return the links that `mlxdist doctor --json` reports for two hosts."""
    exchange = {"buckets": 4, "bytes": 2e7, "seconds": 0.1}
    exchange |= {"computing": 0.1, "both": 0.2}
    links = {"ranks": 2, "hosts": ["a", "b"], "pairs": [*pairs], "exchange": exchange}
    return {"links": {**links, **fields}}
