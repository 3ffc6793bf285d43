"""What `images.py` compares: each builder in a file of its own, all given the same base, lock and models."""
