"""What a stage needs around the maths: parameters, files, locks and signals."""
