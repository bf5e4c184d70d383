"""Whether MLX has arrays still to compute."""

import io

import mlx.core as mx


def is_lazy(tree) -> bool:
    """Return whether an array of a tree is neither evaluated nor queued."""
    graph = io.StringIO()
    mx.export_to_dot(graph, tree)
    return "->" in graph.getvalue()
