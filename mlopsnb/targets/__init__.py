"""Where models run. A target says what is there and carries out one action at a time; it plans nothing.

Each back end is one module, found by its entry point. None knows of formats, tracking or Jupyter.
"""
