"""The parts of ``make_golden_quant.py``; all but ``install`` run in its environment, where torch and the quantisers are."""
