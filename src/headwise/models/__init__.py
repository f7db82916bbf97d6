"""Small trainable models that headwise carries or builds."""
