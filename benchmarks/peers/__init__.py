"""Other people's libraries, run by an interpreter of their own (`environment.py`), each at what its documentation says
is its best. The scripts import nothing of dynamics-sync.
"""
