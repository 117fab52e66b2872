"""One server kept going: a model repository in, a process that answers and its exit code out.

Knows nothing of how the repository was made, or of what is asked of the server.
"""
