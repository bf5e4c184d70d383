"""What errors of Metal mean, in the last line of `mlxdist run` and in the record."""

import pytest

from mlxdist.launcher import metal_errors
from mlxdist.world import postmortem
from tests.support.jobs import ROOT

# As MLX raises them, or libc++abi prints them when MLX's handler ends the process.
FAILED = "[METAL] Command buffer execution failed: "
IGNORED = (
    f"{FAILED}Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"
)
INTERACTIVITY = (
    f"{FAILED}Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (INTERACTIVITY, "the display had to wait"),  # MLX #3267
        (
            f"{FAILED}Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",  # MLX #479
            "ran out of memory",
        ),
        (
            f"{FAILED}Caused GPU Timeout Error "
            "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)",  # flutter #97910
            "look for a rank that is late",
        ),
        (
            f"{FAILED}Caused GPU Hang Error "
            "(00000003:kIOGPUCommandBufferCallbackErrorHang)",  # flutter #127151
            "made no progress",
        ),
        (IGNORED, "after earlier errors"),
        (f"{IGNORED}\n{INTERACTIVITY}", "the display had to wait"),
    ],
)
def test_explain_returns_cause_and_remedy(text, meaning):
    explained = metal_errors.explain(text)
    assert meaning in explained
    assert explained.endswith(f"see {metal_errors.PAGE}")


@pytest.mark.parametrize(
    "text", ["", "RuntimeError: timeout", "kIOGPUCommandBufferCallbackErrorX"]
)
def test_explain_of_another_error_is_empty(text):
    assert metal_errors.explain(text) == ""


def test_page_that_explanations_name_has_every_code():
    page = (ROOT / metal_errors.PAGE).read_text()
    for code in metal_errors.MEANINGS:
        assert f"`{code}`" in page


def test_run_that_is_killed_after_printing_an_error_of_metal_does_not_blame_it(run):
    done = run(
        "import os, signal, sys\n"
        f"print('of the last job:', {IGNORED!r}, file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        ranks=1,
    )
    last = done.stderr.splitlines()[-1]
    assert "was killed by SIGKILL" in last
    assert metal_errors.PAGE not in last


@pytest.mark.parametrize(
    ("act", "how"),
    [
        ("raise RuntimeError(text)", "failed in user code, after step 0"),
        (
            "print('libc++abi: ', text, file=sys.stderr, flush=True); os.abort()",
            "was killed by SIGABRT",
        ),
    ],
)
def test_run_with_an_error_of_metal_says_what_to_do(act, how, run, tmp_path):
    done = run(
        "import os, sys, mlxdist\n"
        f"text = {INTERACTIVITY!r}\n"
        "world = mlxdist.init(timeout=20)\n"
        f"if world.rank:\n    {act}\n"
        "world.barrier()",
        ranks=2,
    )
    last = done.stderr.splitlines()[-1]
    assert f"rank 1 of 2 {how}" in last
    assert "Rank 1: macOS ended its work on the GPU" in last
    assert "caffeinate -is; see docs/night_runs.md." in last
    report = postmortem.report(tmp_path / "mlxdist-postmortem")
    assert "macOS ended its work on the GPU" in report.partition("\n\n")[0]
