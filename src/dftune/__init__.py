"""dftune: fine-tune language models with objectives beyond SFT, and find out whether they helped."""
