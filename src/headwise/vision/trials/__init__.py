"""What papers state of vision-language models, tried on small ones that are trained for it."""
