"""Estimation and uncertainty: losses of residuals, batched minimisation, bootstrap, residual variance, identifiability."""
