"""Power cuts, simulated: what real processes do to the files is recorded, each cut replayed, what it leaves judged."""
