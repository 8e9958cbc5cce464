"""What follows from a fit by EM: functions of it, profiles, replicates, tests, selection."""
