"""Quality of every method at equal true bits: language model, sentence encoder, image classifier."""
