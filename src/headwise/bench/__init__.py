"""What is measured and how: arms at equal bytes, a runner, rows.

`run/` and `cells/` say what is run, `judging/` what the results say, `checks/` how near one plan is to dense attention.
"""
