"""The plan of which rank owns what, for 1 to 1024 ranks: without MLX and MPI."""

import itertools
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxdist.layout.entries import Entry
from mlxdist.layout.paths import KeyPath
from mlxdist.layout.sharding import Plan, balance, make_plan
from tests.support.plans import make_entry

STRATEGIES = ["elements", "tensors"]


def llama_70b() -> list[Entry]:
    """Return the 723 tensors of a 70-billion-parameter transformer, in bfloat16."""
    width, hidden, heads_kv, vocabulary = 8192, 28672, 1024, 32000
    shapes = {
        "attention.q": (width, width),
        "attention.k": (heads_kv, width),
        "attention.v": (heads_kv, width),
        "attention.o": (width, width),
        "mlp.gate": (hidden, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
        "norm1": (width,),
        "norm2": (width,),
    }
    entries = [
        make_entry(f"layers.{i}.{name}", shape, "bfloat16")
        for i in range(80)
        for name, shape in shapes.items()
    ]
    outer = {
        "embed": (vocabulary, width),
        "head": (vocabulary, width),
        "norm": (width,),
    }
    return entries + [make_entry(n, s, "bfloat16") for n, s in outer.items()]


def assert_each_element_has_one_owner(plan: Plan) -> None:
    owned: dict[KeyPath, list[tuple[int, int]]] = {e.path: [] for e in plan.entries}
    for rank in range(plan.ranks):
        for path, part in plan.shard(rank).items():
            owned[path].append(part)
    for entry in plan.entries:
        parts = sorted(owned[entry.path])
        assert parts, f"{entry} has no owner"
        assert parts[0][0] == 0
        assert parts[-1][1] == entry.size
        for (_, stop), (start, _) in pairwise(parts):
            assert stop == start, f"{entry}: {parts}"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_make_plan_of_70_billion_parameters_takes_under_a_second(
    strategy,
):
    entries = llama_70b()
    assert 68e9 < sum(e.size for e in entries) < 71e9
    start = time.process_time()  # not affected by other processes
    plan = make_plan(entries, 1024, strategy=strategy, bucket_size=32 * 2**20)
    fingerprint, parts = plan.fingerprint, plan.shard(777)
    seconds = time.process_time() - start
    assert seconds < 1.0
    assert fingerprint
    if strategy == "elements":
        total = sum(e.size for e in entries)
        assert sum(b - a for a, b in parts.values()) == pytest.approx(
            total / 1024, 0.01
        )
    assert_each_element_has_one_owner(plan)


def test_make_plan_imports_neither_mlx_nor_mpi_nor_numpy():
    code = (
        "import sys, importlib.util as u, types\n"
        "package = types.ModuleType('mlxdist')\n"
        "package.__path__ = [u.find_spec('mlxdist').submodule_search_locations[0]]\n"
        "sys.modules['mlxdist'] = package\n"
        "from mlxdist.layout import Entry, KeyPath, make_plan\n"
        "make_plan([Entry(KeyPath(('a',)), (3, 5), 'float32')], 4, strategy='elements',"
        " bucket_size=16)\n"
        "assert not {'mlx', 'mlx.core', 'mpi4py', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


entries_lists = st.lists(
    st.tuples(
        st.lists(st.integers(0, 6), max_size=3),
        st.sampled_from(["float32", "bfloat16"]),
    ),
    max_size=12,
).map(
    lambda shapes: [make_entry(f"p{i}", tuple(s), d) for i, (s, d) in enumerate(shapes)]
)


@settings(max_examples=100)
@given(
    entries_lists,
    st.integers(1, 9),
    st.sampled_from(STRATEGIES),
    st.integers(1, 400),
)
def test_make_plan_gives_each_element_one_owner(entries, ranks, strategy, bucket_size):
    plan = make_plan(entries, ranks, strategy=strategy, bucket_size=bucket_size)
    assert_each_element_has_one_owner(plan)
    for bucket in plan.buckets:
        spans = [bucket.span(rank) for rank in range(ranks)]
        assert spans[0][0] == 0
        assert spans[-1][1] == bucket.size
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert bucket.chunk == max(b - a for a, b in spans)
        for rank, (start, stop) in enumerate(spans):
            pieces = list(bucket.pieces(rank))
            assert sum(p.stop - p.start for p in pieces) == stop - start
            if strategy == "tensors":
                assert list(bucket.owners) == sorted(bucket.owners)
                assert all((p.start, p.stop) == (0, p.entry.size) for p in pieces)


@given(entries_lists, st.integers(1, 9), st.sampled_from(STRATEGIES))
def test_pieces_of_a_rank_lie_end_to_end_and_empty_entries_have_one_owner(
    entries, ranks, strategy
):
    plan = make_plan(entries, ranks, strategy=strategy, bucket_size=64)
    owners = []
    for rank, bucket in itertools.product(range(ranks), plan.buckets):
        pieces = list(bucket.pieces(rank))
        owners += [piece.entry.path for piece in pieces if not piece.entry.size]
        sizes = [piece.stop - piece.start for piece in pieces]
        ends = list(itertools.accumulate(sizes, initial=0))
        assert [piece.offset for piece in pieces] == ends[:-1]
    assert sorted(owners) == [e.path for e in plan.entries if not e.size]


@given(entries_lists, st.integers(1, 9), st.randoms())
def test_make_plan_of_shuffled_entries_is_the_same(entries, ranks, random):
    shuffled = list(entries)
    random.shuffle(shuffled)
    for strategy in ("replicated", "elements", "tensors"):
        one, other = (
            make_plan(e, ranks, strategy=strategy, bucket_size=64)
            for e in (entries, shuffled)
        )
        assert one == other
        assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 64, 1024])
def test_make_plan_of_elements_is_even_on_any_number_of_ranks(ranks):
    entries = [make_entry(f"p{i}", (1009, 37), "float32") for i in range(40)]
    plan = make_plan(entries, ranks, strategy="elements", bucket_size=2**20)
    total = sum(e.size for e in entries)
    for rank in range(ranks):
        count = sum(stop - start for start, stop in plan.shard(rank).values())
        assert count <= total / ranks + len(plan.buckets)


def test_make_plan_of_fewer_elements_than_ranks_leaves_some_ranks_empty():
    plan = make_plan(
        [make_entry("a", (3,), "float32")], 5, strategy="elements", bucket_size=1
    )
    shards = [{str(p): s for p, s in plan.shard(r).items()} for r in range(5)]
    assert shards == [
        {"a": (0, 1)},
        {"a": (1, 2)},
        {"a": (2, 3)},
        {},
        {},
    ]


def _assert_cut_between_blocks(plan: Plan, block: int) -> None:
    assert_each_element_has_one_owner(plan)
    for bucket in plan.buckets:
        even = -(-bucket.size // plan.ranks)
        for rank, (start, _) in enumerate(bucket.spans):
            assert abs(start - min(rank * even, bucket.size)) <= block // 2
            for piece in bucket.pieces(rank):
                assert piece.start % block == 0
                assert piece.stop % block == 0 or piece.stop == piece.entry.size


@settings(max_examples=50)
@given(st.lists(st.integers(0, 700), max_size=6), st.sampled_from([3, 64]))
def test_make_plan_in_blocks_cuts_between_them(sizes, block):
    entries = [make_entry(f"p{i}", (n,), "float32") for i, n in enumerate(sizes)]
    for ranks in range(1, 9):
        plan = make_plan(
            entries, ranks, strategy="elements", bucket_size=2048, block=block
        )
        _assert_cut_between_blocks(plan, block)


def test_make_plan_in_blocks_for_1024_ranks_cuts_between_them():
    some = llama_70b()[::40]
    plan = make_plan(some, 1024, strategy="elements", bucket_size=2**25, block=64)
    _assert_cut_between_blocks(plan, 64)
    even = make_plan(some, 1024, strategy="elements", bucket_size=2**25)
    assert plan.fingerprint != even.fingerprint


@pytest.mark.parametrize("strategy", ["replicated", "tensors"])
def test_make_plan_of_whole_tensors_has_no_blocks(strategy):
    entries = [make_entry(name, (100,), "float32") for name in "ab"]
    plans = [
        make_plan(entries, 3, strategy=strategy, bucket_size=2048, block=block)
        for block in (1, 64)
    ]
    assert plans[0] == plans[1]


@given(st.lists(st.integers(1, 1000), min_size=1), st.integers(1, 8))
def test_balance_of_any_costs_is_within_its_bound(costs, ranks):
    owners = balance(costs, ranks)
    loads = [
        sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank)
        for rank in range(ranks)
    ]
    best_possible = max(max(costs), sum(costs) / ranks)
    assert max(loads) <= (4 / 3) * best_possible + max(costs) / 3


def test_balance_counts_all_that_a_rank_has_already():
    assert balance([4, 3, 2, 2], 2) == [0, 1, 1, 0]


def test_make_plan_of_tensors_balances_their_costs():
    entries = [make_entry(name, (10,), "float32") for name in "abc"]
    costs = {
        KeyPath((name,)): cost
        for name, cost in zip("abc", (10.0, 1.0, 1.0), strict=True)
    }
    plan = make_plan(entries, 2, strategy="tensors", bucket_size=1, costs=costs)
    shards = {frozenset(map(str, plan.shard(r))) for r in (0, 1)}
    assert shards == {frozenset("a"), frozenset("bc")}


def test_make_plan_of_tensors_balances_their_bytes_by_default():
    shapes = {"a": (10, 10), "b": (10,), "c": (10,)}
    entries = [make_entry(name, shape, "float32") for name, shape in shapes.items()]
    plan = make_plan(entries, 2, strategy="tensors", bucket_size=1)
    shards = {frozenset(map(str, plan.shard(r))) for r in (0, 1)}
    assert shards == {frozenset("a"), frozenset("bc")}


def test_fingerprint_of_a_plan_with_other_owners_differs():
    """Ranks that disagree on an owner would wait for each other."""
    entries = [make_entry(name, (10,), "float32") for name in "ab"]
    plans = [
        make_plan(
            entries,
            2,
            strategy="tensors",
            bucket_size=1,
            costs={KeyPath(("a",)): cost, KeyPath(("b",)): 2.0},
        )
        for cost in (1.0, 3.0)
    ]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_make_plan_of_wrong_arguments_is_refused():
    one = [make_entry("a", (1,), "float32")]
    with pytest.raises(ValueError, match="at least one"):
        make_plan(one, 0, strategy="elements", bucket_size=1)
    with pytest.raises(ValueError, match="unknown shard strategy 'rows'"):
        make_plan(one, 2, strategy="rows", bucket_size=1)
    with pytest.raises(ValueError, match="two parameters"):
        make_plan([*one, *one], 2, strategy="elements", bucket_size=1)
