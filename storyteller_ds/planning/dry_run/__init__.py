"""The first step of many ranks on one machine: a process takes the part of one rank among copies of itself."""
