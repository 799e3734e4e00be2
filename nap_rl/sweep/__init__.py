"""Many runs from one command: which ones (trials), each brought to its end (attempts), on this machine (local)."""
