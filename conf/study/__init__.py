"""study.py's configs: a root of their own, since `nap` is a group for train.py and true or false for a study."""
