"""Scripts that run inside the build of an exported context, on the image's own Python. Never imported here."""
