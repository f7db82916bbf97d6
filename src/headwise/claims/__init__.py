"""Claims that can fail: what a row of the list promises of a method, hosts where controls fail, and the judgement."""
