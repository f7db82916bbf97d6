"""How much a query asks of a key."""
