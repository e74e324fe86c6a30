"""For tests of machines and stores: a clock, agents, a model server, crash sweeps, checks of a store.

Import from the modules: `flat.testing.clock`, `.agents`, `.crash`, `.stores`, `.model_server`.
"""
