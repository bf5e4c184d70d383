"""What tests share: examples, real jobs, virtual hosts, and the plugin for mpirun."""
