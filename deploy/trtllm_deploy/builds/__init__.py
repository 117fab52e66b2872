"""Who makes what, where and when: planned stages in, artifacts in the store out.

Knows nothing of what a stage means; that is in the rooms below.
"""
