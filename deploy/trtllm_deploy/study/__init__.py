"""What is done with built cells: plans in, a ledger of measurements and what follows from it out.

Knows nothing of how a cell was built, or of the command's words.
"""
