"""Many conversations from one machine, each with its own plan, over an HTTP API that clients know."""
