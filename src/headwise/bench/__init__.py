"""What is measured and how: the run job, its arms at equal bytes, its rows."""
