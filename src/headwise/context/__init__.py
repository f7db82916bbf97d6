"""Documents and a question in, a prompt out: sorted, ranked, shortened, or read in pieces of their own."""

from headwise.context.answers import answer
from headwise.context.arrange import arrange
from headwise.context.asked import Arranged, Asked
from headwise.context.wording import Wording, wording_of

__all__ = ["Arranged", "Asked", "Wording", "answer", "arrange", "wording_of"]
