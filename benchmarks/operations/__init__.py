"""How fast the operations are, compared with their peers and with the limits of the machine.

run.py measures, table.py writes the tables. A benchmark goes through these files in this order:

    suite.py        the command: operations one after another
    ops/<op>.py     what is computed, by which implementations, and how fast it should be: cases and goals
    case.py         what such a case is made of
    moe_problem.py      an MoE layer's inputs, weights and fp64 reference
    decoder_reference.py   the fp64 reference of a whole decoder
    peers/          other people's implementations, with the weights of the case
    correctness.py  every implementation against the fp64 reference; wrong ones are not timed
    limits.py       what bounds it: a matrix product, a batch of them, a copy
    flops.py        floating-point operations, counted by hand
    timing.py       interleaved rounds
    measure.py      from a case to the rows of the record
    goals.py        goals against rows
    record.py       the machine, the versions, the JSON
    readme.py       from records to the tables of the READMEs
"""
