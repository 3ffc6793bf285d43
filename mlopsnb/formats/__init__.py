"""All we know of a format in one place: how to write a model in it, and how to run what was written.

Nothing here knows of packages, tracking or servers. A framework is imported in the function that needs it; to say
that a model is not ours takes no import at all.
"""
