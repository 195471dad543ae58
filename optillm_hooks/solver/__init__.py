"""Exact reasoning in a worker process: Z3 on SMT-LIB scripts, SymPy on declared requests.

`smtlib`, `algebra` and `worker` run inside the worker and import nothing else of the package, so
that it starts in a tenth of a second; `client` asks them.
"""
