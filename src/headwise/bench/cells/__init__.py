"""The comparison of `headwise bench` and `sweep`: arms x tasks x lengths, each a cell that any process can run."""
