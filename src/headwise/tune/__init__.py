"""From a model, documents and a number of bytes to the plan that loses least."""
