"""The figures: dynamics-sync beside what else could be used, and beside what this machine can do at all. `make bench`.

Imports nothing here: the peers' scripts below run with another interpreter, in an environment of their own.
"""
