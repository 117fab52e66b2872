"""Up to which load limits are kept: what runs showed in, the next run to make or the answer out.

``hunt`` decides and measures nothing, so that it runs against simulated servers in virtual time;
``probes`` makes its runs real and keeps them in a ledger; ``drawn`` shows what came of it.
"""
