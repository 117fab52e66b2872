"""The deployment file: YAML in, checked values and the cells of the matrix out. Runs nothing."""
