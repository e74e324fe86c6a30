"""The seed system's public names, over this engine: for code that was written for it, with its imports changed.

New code has `load`, `Runtime` and the stores instead. Nothing of the engine uses what is here.
"""
