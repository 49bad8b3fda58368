"""`slideformer report`: a run directory as one page of HTML that needs nothing else."""
