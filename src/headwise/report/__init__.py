"""Tables, pictures and the page, made of a run's JSON object alone."""
