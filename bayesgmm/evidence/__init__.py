"""What is integrated over the posterior, and the rows that it leaves out."""
