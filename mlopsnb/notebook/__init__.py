"""The notebook front end: magics, completion, status and displays.

A magic parses its line, calls one Python function and returns what that returns. Nothing here decides anything
about models; nothing outside knows Jupyter. Loading this package loads no framework and not even numpy.
"""
