"""The run job of `headwise run`: the arms of one prompt within a number of bytes, and a row of each."""
