"""Who watches whom in a run of many ranks, so that it ends as a whole or not at all.

    deepspeed (the command typed)          torchrun, srun: the same without this line
        └─ deepspeed.launcher.launch  ◄─────────────────────┐ watch it, and the command above it
             ├─ supervisor of rank 0 ─── hub of the lifeline ┤
             │    └─ training, rank 0     ▲          ▲       │
             └─ supervisor of rank 1 ─────┘          │       │
                  └─ training, rank 1      supervisors of other machines, over TCP

Every process that a launcher starts becomes a supervisor: before torch is imported it forks the process that
trains (supervisor.py). The kernel tells it of the death of its child and of its launcher, the lifeline
(lifeline.py) of a rank lost elsewhere; each of these ends the run on every machine, with an exit code that is not
0 and one line that names rank, host and step. Signals that ask a run to end are passed on, and the child is given the
time to save if it says that it does so (training/interruption.py). A supervisor that is killed takes its child with it.
What the training process says to its supervisor goes through a pipe (child.py). `storyteller launch` stands above the
deepspeed command and passes signals to the supervisors, past the launchers, which would not survive them
(launchers.py).

Nothing here imports torch: a supervisor waits, and takes some 35 MB, most of which it shares with the process that
trains.
"""
