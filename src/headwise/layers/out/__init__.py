"""How what heads read becomes the token's width again."""
