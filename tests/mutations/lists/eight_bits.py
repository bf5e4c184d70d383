"""Mistakes in moments of 8 bits and masters of 24 bits that are moved or saved."""

from tests.mutations.mutation import mistakes

MOMENTS = ("tests/optim/test_moments.py",)
CONVERTED = ("tests/checkpoint/test_converted_state.py",)

MUTATIONS = [
    *mistakes(
        "optim/state_layout.py",
        MOMENTS,
        [
            ("start // BLOCK, stop // BLOCK)", "start // BLOCK, stop)"),
            ("return size // BLOCK, BLOCK", "return (size,)"),
            (
                "return value.reshape(-1)[first:last]",
                "return value.reshape(-1)[0:last]",
            ),
            ('return "elements" if spec is None', 'return "" if spec is None'),
        ],
        (2,),
    ),
    *mistakes(
        "optim/moments.py",
        MOMENTS,
        [
            ("if pair_of(m).scales in known", ""),
            ('"uint8": "root"}', '"uint8": "signed"}'),
            ("if moment in without and", "if False and"),
            ("== without[moment]:", "or True:"),
            (" and array.size % BLOCK == 0", ""),
        ],
        (),
    ),
    *mistakes(
        "optim/state_setup.py",
        MOMENTS,
        [
            (".pop(CORRECTION, None)", ".get(CORRECTION)"),
            ("return Want(*cut_span(cut, start, stop)", "return Want(start, stop"),
        ],
        (2,),
    ),
    *mistakes(
        "optim/masters.py",
        MOMENTS,
        [("result[CORRECTION] = float24", "_ = float24")],
        (1,),
    ),
    *mistakes(
        "checkpoint/state_targets.py",
        CONVERTED,
        [
            ("skipped = part.start - first * BLOCK", "skipped = 0"),
            ("-(-part.stop // BLOCK)", "part.stop // BLOCK"),
            ("convert = _master if key == KEY else", "convert = _master if 0 else"),
            ("elif key == CORRECTION:", "elif False:"),
            ("shape, put, convert, (span,)", "shape, put, convert, ((0, 0),)"),
            ("scales.shape != (codes.shape[0],)", "False"),
            ("elif scales is None:", "elif False:"),
        ],
        (2,),
    ),
    *mistakes(
        "checkpoint/mlx_files.py",
        CONVERTED,
        [
            (
                "start // ROW, stop // ROW, readers)",
                "0, (stop - start) // ROW, readers)",
            ),
            ("low, high = max(piece.start, start)", "low, high = max(0, start)"),
            ("for other in alternatives(key)", "for other in ()"),
        ],
        (2,),
    ),
]
