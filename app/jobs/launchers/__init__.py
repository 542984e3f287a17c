"""Where jobs run: one small interface, one module an engine, and the conformance suite that each of them passes."""
