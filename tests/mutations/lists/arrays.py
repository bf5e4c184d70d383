"""Mistakes in views and sums of arrays, and in trees and their paths."""

from tests.mutations.mutation import Mutation

CONCAT = ("tests/arrays/test_concat.py",)
NUMPY_VIEW = ("tests/arrays/test_numpy_view.py",)
PAIRWISE = ("tests/arrays/test_pairwise_sum.py",)
FLOAT24 = ("tests/arrays/test_float24.py",)
ARENA = ("tests/arrays/test_arena.py",)
TREES = ("tests/arrays/test_trees.py",)
TREE_INDEX = ("tests/arrays/test_tree_index.py",)

MUTATIONS = [
    Mutation("arrays/concat.py", ".astype(self._dtype)", "", CONCAT),
    Mutation("arrays/concat.py", "flat[start:stop]", "flat[start:]", CONCAT),
    Mutation("arrays/concat.py", ".reshape(s)", "", CONCAT),
    Mutation("arrays/concat.py", "offsets[1:-1]", "offsets[:-1]", CONCAT),
    Mutation("arrays/concat.py", " or offsets[0]", "", CONCAT),
    Mutation("arrays/concat.py", " or len(flat) != offsets[-1]", "", CONCAT),
    Mutation("arrays/float24.py", "is_nan = absolute >", "is_nan = 0 >", FLOAT24),
    Mutation("arrays/float24.py", "(bits >> 31 << 15)", "(bits >> 31 << 14)", FLOAT24),
    Mutation("arrays/float24.py", "mx.maximum((bits", "mx.abs((bits", FLOAT24),
    Mutation("arrays/float24.py", "sign > 0, -small", "sign < 0, -small", FLOAT24),
    Mutation("arrays/float24.py", "is_small = absolute < ", "is_small = 0 > ", FLOAT24),
    Mutation("arrays/float24.py", "mx.minimum(rest, 127)", "rest", FLOAT24),
    Mutation("arrays/float24.py", "mx.abs(rest) <= 128", "rest <= 128", FLOAT24),
    Mutation("arrays/float24.py", "0x9E3779B1", "0", FLOAT24),
    Mutation("arrays/float24.py", "return mixed >> 24", "return mixed >> 25", FLOAT24),
    Mutation("arrays/arena.py", "self._blocks[dtype] = block, -(", "0, -(", ARENA),
    Mutation("arrays/arena.py", "start + size > block.bits.size", "False", ARENA),
    Mutation("arrays/numpy_view.py", "if not view.c_contiguous:", "if 0:", NUMPY_VIEW),
    Mutation("arrays/numpy_view.py", "wide <<= 16", "wide <<= 15", NUMPY_VIEW),
    Mutation("arrays/numpy_view.py", "+= 0x7FFF", "+= 0x8000", NUMPY_VIEW),
    Mutation("arrays/numpy_view.py", "rounded &= 1", "rounded &= 0", NUMPY_VIEW),
    Mutation(
        "arrays/numpy_view.py",
        "numbers[start : start + BLOCK]",
        "numbers[start:BLOCK]",
        NUMPY_VIEW,
    ),
    Mutation(
        "arrays/numpy_view.py",
        "total if math.isfinite(total) else math.inf",
        "total",
        NUMPY_VIEW,
    ),
    Mutation("arrays/numpy_view.py", "if array.size:", "if 0:", NUMPY_VIEW),
    Mutation(
        "arrays/numpy_view.py",
        "if following is None or address(array) != following:",
        "if following is None:",
        ("tests/optim/test_fused_step.py",),
        (2,),
    ),
    Mutation("arrays/pairwise_sum.py", " and stop != size", "", PAIRWISE),
    Mutation(
        "arrays/pairwise_sum.py",
        "block * (_BLOCK >> node.level)",
        "block * _BLOCK",
        PAIRWISE,
    ),
    Mutation("arrays/pairwise_sum.py", "[level[-1]] if", "[] if", PAIRWISE),
    Mutation(
        "arrays/pairwise_sum.py",
        "first <= block < last",
        "first < block < last",
        PAIRWISE,
    ),
    Mutation("arrays/trees.py", "1 + max(indices)", "max(indices)", TREES),
    Mutation("arrays/trees.py", 'f"{entry}\\n".encode()', 'b""', TREES),
    Mutation(
        "arrays/trees.py", "checksum.update(raw(array).data)", "raw(array)", TREES
    ),
    Mutation("arrays/trees.py", "{} if c is _ABSENT", "None if c is _ABSENT", TREES),
    Mutation("arrays/trees.py", "if children or not like", "if children", TREES),
    Mutation("arrays/trees.py", "(key + 1 - len(tree))", "(key - len(tree))", TREES),
    Mutation("arrays/trees.py", "[piece.start : piece.stop]", "[: piece.stop]", TREES),
    Mutation("arrays/trees.py", "leaf if i == key else item", "leaf", TREES),
    Mutation(
        "arrays/tree_index.py",
        "len(container) != size",
        "len(container) < size",
        TREE_INDEX,
    ),
    Mutation(
        "arrays/tree_index.py", "{key: new[key] for key in tree}", "new", TREE_INDEX
    ),
    Mutation(
        "arrays/tree_index.py",
        "container.children[key] = _Container()  #",
        "pass  #",
        TREE_INDEX,
    ),
]
