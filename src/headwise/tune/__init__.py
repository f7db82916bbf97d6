"""From a model and a budget to a plan, and what a plan will cost before anything is loaded."""
