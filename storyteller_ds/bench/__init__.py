"""What `storyteller bench` measures on the user's machine.

compared.py: what is compared. quality.py: the runs. report.py: table, plot and verdict.
"""
