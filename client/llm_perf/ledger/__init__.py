"""What was measured, kept: runs in, one line per measurement of a study out, and read again.

Knows how a measurement is told from another; knows neither what a study is for nor the screen.
docs/ledger.md documents the file.
"""
