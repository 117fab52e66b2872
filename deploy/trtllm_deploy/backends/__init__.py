"""The ways to serve a cell, one module each: a cell in, engine and model repository out.

:mod:`trtllm_deploy.backends.backend` is the seam; nothing outside this room asks which it is.
"""
