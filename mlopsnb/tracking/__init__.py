"""Where packages are kept under a name and a version, and what is written down of where they came from.

A tracker stores and finds; it exports nothing and deploys nothing. `provenance`, `fingerprint` and `environment`
only look: they know no tracker and change nothing.
"""
