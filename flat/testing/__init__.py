"""For tests of machines and stores, ours and yours: a clock, agents, a model server, crash sweeps, store checks.

Import from the modules: `flat.testing.clock`, `.agents`, `.crash`, `.stores`, `.model_server`.
"""
