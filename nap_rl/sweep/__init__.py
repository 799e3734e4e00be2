"""Many runs from one command: which ones (trials), and how they run on this machine (local)."""
