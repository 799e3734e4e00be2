"""Hydra's configs: YAML holds the values, `schema` the types, `check` the rules, `build` the objects."""
