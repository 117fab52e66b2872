"""Prompts with token counts: files, or a shape, in; what will be asked out. Sends nothing."""
