"""The claims, one file for each part of a recipe or paper."""
