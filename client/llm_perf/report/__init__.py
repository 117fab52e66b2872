"""Measurements to one page that can be mailed: a decision, charts, tables; and charts as SVG files.

Result files and ledgers come in, text goes out. Knows nothing of servers, and loads nothing.
"""
