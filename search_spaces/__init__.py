"""Search spaces: YAML files, and nothing else."""
