"""Fitting and renewing the calibrated gate. Needs scikit-learn; the fitted gate does not."""
