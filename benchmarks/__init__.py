"""Side-by-side measurements, each a script with a printed table: `python -m benchmarks.nap_overhead`."""
