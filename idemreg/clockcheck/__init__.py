"""Whether the wall clock can be trusted to say when a slot is due.

Nothing in a claim's decision depends on it. Read `readings` and `verdict` first, which compare and judge and touch
nothing; then `kernel`, `chrony` and `hardware`, which ask one source each; then `check`, which keeps the last look,
suspends and confirms.
"""
