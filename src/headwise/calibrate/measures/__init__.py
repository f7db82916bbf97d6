"""What is measured once of a model whatever its method: shared measures, those that serve several methods or people.

What one paper measures stands in the paper's own file or folder."""
