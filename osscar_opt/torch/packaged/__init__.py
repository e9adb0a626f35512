"""Real models and real data that installed packages carry: where the catalogue's real instances come from.

Nothing is downloaded and nothing is kept: weights, texts and pictures are read where their packages put them. Each
module here is one family of models; `osscar_opt.torch.packaged.models` is the list of them.
"""
