"""`python -m mlopsnb`."""

from mlopsnb.cli import entry

entry()
