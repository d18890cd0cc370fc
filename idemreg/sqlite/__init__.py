"""The Store in one SQLite file. All SQL of idemreg is in this folder, and apsw is imported nowhere else."""
