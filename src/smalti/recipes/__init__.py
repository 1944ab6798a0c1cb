"""L9: recipes. A recipe is a module with plain functions, one a verb, that return a run's configuration.

The command line takes a module's name (`nano`) or a function in a file of yours (`my_file.py:function`).
"""
