"""Memory, descriptors, threads and checkpoints of a long run: benchmarks/soak.py."""

import pytest
import soak

from tests.benchmarks.test_programs import bench


def test_slope_is_the_growth_of_a_step():
    assert soak.slope([7.0, 7.0, 7.0], every=50) == 0
    assert soak.slope([100.0, 150.0, 200.0, 250.0], every=50) == 1


def test_summary_of_a_rank_that_grows_has_its_slopes_after_the_warm_up():
    windows, size = 4, soak.SAVE_EVERY // soak.SAMPLE_EVERY
    number = windows * size
    resident = [10**9] * size + [1000 * soak.SAMPLE_EVERY * i for i in range(number)]
    descriptors = [99] * size + [20 + i // size for i in range(number)]
    threads = ([4] + [5] * (size - 1)) * (windows + 1)  # while a save is under way
    samples = {"resident": resident, "descriptors": descriptors, "threads": threads}
    samples |= {name: (windows + 1) * size * [3] for name in ("mlx_active", "bytes")}
    samples["checkpoints"] = ([5, 4] + [3] * (size - 2)) * (windows + 1)
    (rank,) = soak.summarize([samples], warmup=soak.SAVE_EVERY)["ranks"]
    assert rank["resident slope"] == 1000
    assert rank["descriptors slope"] == 1 / soak.SAVE_EVERY
    assert (rank["threads slope"], rank["threads"]) == (0, [4, 4])
    assert rank["checkpoints"] == [3, 3]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_of_20000_steps_is_flat(tmp_path):
    result = bench(tmp_path, "soak", timeout=1700)
    assert (result["steps"], len(result["ranks"])) == (20_000, 2)
    assert result["epochs"] > 600
    for rank in result["ranks"]:
        assert rank["resident slope"] < soak.BOUND
        assert rank["descriptors slope"] <= 0
        assert rank["threads slope"] <= 0
        assert rank["checkpoints"] == 2 * [soak.KEEP + 1]  # and `latest`
    assert (tmp_path / "result.png").stat().st_size > 1000
