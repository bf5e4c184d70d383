"""Other people's trainers, run on N ranks. Each needs its own package."""
