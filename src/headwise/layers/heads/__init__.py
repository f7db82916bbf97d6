"""Out parts that send tokens to some of the heads."""
