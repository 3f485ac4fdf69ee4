"""What is done to a server on purpose, and what its clients see. `fault_trial.py` and `load_trial.py` run these parts."""
