"""What Sensorkeep costs, measured: each module runs alone, `python -m bench` runs them all."""
