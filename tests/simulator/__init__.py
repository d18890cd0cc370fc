"""Several virtual processes in one real process, on the real code: who goes on at each step, a seed decides."""
