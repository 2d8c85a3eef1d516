"""Pictures of runs. Import late: this imports Matplotlib."""
