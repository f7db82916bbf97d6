"""From a model, documents and a budget to the plan that loses least; and what it costs before anything is loaded."""
