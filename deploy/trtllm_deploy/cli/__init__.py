"""The commands of ``trtllm-deploy``: words in, a screen and an exit code out.

Knows nothing of how a thing is made, served or measured; it asks the rooms below.
"""
