"""The version, in one place: for the package, the server's answers and what images say of themselves."""

__version__ = "0.1.0"
