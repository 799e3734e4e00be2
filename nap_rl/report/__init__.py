"""Tables and figures from the files that runs write: metrics.csv, episodes.csv, summary.json."""
