"""Many machines: their recordings scored, or their scorers fitted, on Ray Data or by launched processes.

The output is a folder of Parquet files, which a stopped run goes on with.
"""
