"""What single benchmarks are made of: their tensors, and the ranks of their jobs."""
