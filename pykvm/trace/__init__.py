"""From a raw record of the exit loop to what a person can read: record, clock, and how to print them."""
