"""Why `SequenceVAE` errs on series where it does: variants, and what they are measured by."""
