"""Vision-language models: image tokens that are left out, and what they answer against their habits."""
