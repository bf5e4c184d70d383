"""Fine-tuning with mlx-lm on N ranks.

`train` takes what `mlx_lm.tuner.trainer.train` takes. The command is

    mlxdist run -n 2 -m mlxdist.integrations.mlx_lm lora --config FILE
"""

from .trainer import train

__all__ = ["train"]
