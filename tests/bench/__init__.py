"""The bench: figures of what pykvm costs, each beside a C floor that does the same and nothing else."""
