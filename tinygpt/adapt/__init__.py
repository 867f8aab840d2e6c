"""The commands that adapt a model: finetune, import and export; and the file formats."""
