"""The embedded model: its corpus preparation, tasks, network, training, export and measurements."""
