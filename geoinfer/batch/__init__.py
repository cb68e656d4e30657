"""Many photos: a bounded pipeline, a ledger that survives a crash, writers, and the two runs that are made of them."""
