"""The same model, calibration and test text through other people's GPTQ."""
