"""What every other room stands on: the attention rule, noise and losses, documents and chat messages, files, figures,
and names on the hub. No module here knows a model."""
