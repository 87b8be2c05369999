"""What to run, as data: an experiment is its members, a member is a recipe's settings (`lab/plan.py` makes jobs of them)."""
