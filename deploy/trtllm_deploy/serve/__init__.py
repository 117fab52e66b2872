"""One server kept going: a folder in, a process that answers and its exit code out.

Knows nothing of how the folder was made, of the kind of server, or of what is asked of it.
"""
