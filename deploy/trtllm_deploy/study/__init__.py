"""What is done with served cells: cells and a workload in, measurements out.

Knows nothing of how a cell was built, or of the screen.
"""
