"""dftune's objectives in other people's trainers: TRL's ``SFTTrainer`` and transformers' ``Trainer``."""
