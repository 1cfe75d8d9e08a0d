"""Every rank has a supervisor, so that a run of many ranks ends as a whole.

    deepspeed (the command typed)          torchrun, srun: the same without this line
        └─ deepspeed.launcher.launch  ◄─────────────────────┐ watch it, and the command above it
             ├─ supervisor of rank 0 ─── hub of the lifeline ┤
             │    └─ training, rank 0     ▲          ▲       │
             └─ supervisor of rank 1 ─────┘          │       │
                  └─ training, rank 1      supervisors of other machines, over TCP

Every process that a launcher starts becomes a supervisor: before torch is imported it forks the training process
(supervisor.py). It gets a signal when its child or its launcher dies, and a message through the lifeline (lifeline.py)
when a rank is lost elsewhere. Each of these ends the run on every machine, with a nonzero exit code and one line that
names rank, host and step. Signals that ask a run to end are passed on to the child, which saves
(training/interruption.py). When a supervisor is killed, the kernel kills its child. The training process reports its
step to its supervisor through a socket (child.py). `storyteller launch` runs above the deepspeed command and sends
signals directly to the supervisors, since they would kill the launchers (launchers.py).

Nothing here imports torch: a supervisor takes about 35 MB, most of which it shares with the training process.
"""
