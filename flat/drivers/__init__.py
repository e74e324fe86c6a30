"""What performs the effects of executions and keeps their snapshots: one at a time, as a dispatcher, or as a worker."""
