"""The pure core: programs, snapshots, and the step from one to the next. It touches nothing outside itself."""
