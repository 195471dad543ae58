"""Exact reasoning in a worker process: Z3 on SMT-LIB scripts, SymPy on declared requests.

`smtlib` and `algebra` run inside the worker and import nothing else from this package, so that it
starts in a tenth of a second; `client` calls them.
"""
