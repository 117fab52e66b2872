"""The ways to serve a cell: a cell in; engine, the folder a server is started on, and server out.

Two seams: :mod:`trtllm_deploy.backends.protocol`, how a cell is made ready, and
:mod:`trtllm_deploy.backends.server`, what is started then. Nothing outside this room asks which.
"""
