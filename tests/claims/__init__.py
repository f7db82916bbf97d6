"""One test per system with what its row claims, on the embedded model.

The relations asserted hold on the model as it is shipped. Figures in docstrings tell their size. Those of evictions and
of prefill patterns are of that model, the others of the one before its last training (recipe 29104cb896fd): run with
`-s` to see today's.
"""
