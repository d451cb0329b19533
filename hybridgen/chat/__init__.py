"""Conversations with a model that reads and draws: settings, turns, events, and sessions of many turns.

Everything here takes a `HybridGenPipeline` as an argument (`pipe`) and imports none, so that the pipeline may hand out
chats. Of a pipeline it uses `model`, `processor`, `scheduler`, `context` and `origin`, its checks (`writing_path`,
`check_sizes`, `check_codec`, `check_conditions`, `drawing_setup`), `latent_size`, `encode_images` and `decode_images`.
"""
