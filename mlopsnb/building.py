"""The build step: from a model package to a serving image."""
