"""The maker of tiny-r1, the embedded demonstration model: corpus, tokenizer, training, evaluation."""
