"""A run for eyes and files, and two runs compared: records and figures in, tables and files out.

Sends nothing.
"""
