"""How fast the operations are, against their peers and against what the machine can do at all.

run.py measures, table.py writes the tables. A benchmark goes through these files in this order:

    ops/<op>.py     what is computed, by whom, and how fast it should be: cases and goals
    peers/          other people's implementations, with the weights of ours
    correctness.py  every implementation against the fp64 reference; what is wrong gets no time
    timing.py       interleaved rounds
    limits.py       what bounds it: a matrix product, a batch of them, a copy
    measure.py      a case to the rows of the record
    goals.py        goals against rows
    record.py       the machine, the versions, the JSON
"""
