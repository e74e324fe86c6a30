"""What `flat` costs beside the physical limit and beside its peers: `python -m benchmarks`."""
