"""Hydra's configs and their types: YAML holds the values, `schema` the types, `check` the rules, `build` the objects."""
