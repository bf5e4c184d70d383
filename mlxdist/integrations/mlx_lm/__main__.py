"""`python -m mlxdist.integrations.mlx_lm lora`."""

from .command import main

if __name__ == "__main__":
    main()
