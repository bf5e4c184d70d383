"""The tiny model and data of launch/examples/tiny_mlx_lm.py, in the folder tiny."""

from pathlib import Path

from examples.tiny_mlx_lm import write_data, write_model

import mlxdist

world = mlxdist.init()
if world.is_root:
    write_model(Path("tiny/model"), width=16, layers=1)
    write_data(Path("tiny/data"), rows=24)
world.barrier()
