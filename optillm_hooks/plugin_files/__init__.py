"""Plugin files of OptiLLM: modules with `SLUG` and `run`, each of which becomes an approach."""
