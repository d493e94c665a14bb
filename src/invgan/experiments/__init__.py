"""One module per table or figure: each has ``run(quick=..., out=...)``, which writes its results file."""
