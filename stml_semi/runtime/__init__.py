"""What any program needs: processes, errors, progress, the machine, files."""
