"""The first step of many ranks on one machine: each process plays one rank among copies of itself."""
