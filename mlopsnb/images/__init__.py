"""Serving images: what goes into one, how it is packed, and how it gets to where it is needed."""
