"""What is kept on a disk or in an object store: arrays, whole directories, locks, and a run with its cells."""
